"""The schemes side by side through one card's real VFIO line: ``vfio-intx bench --device``.

The line can only be wired to one machine at a time. So every scheme has its machine, running from the start, and the
line is handed from one to the next after each round: unwired from one, wired to the other, INTx off in between.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from vfio_intx.chain.scheme import Scheme
from vfio_intx.errors import MissingError
from vfio_intx.host.irq import read_counts
from vfio_intx.host.pci import read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.microvm.bench import rounds_of
from vfio_intx.microvm.contest import ALLOWED_S, GRACE_S, GSI, note_late
from vfio_intx.microvm.figures import BenchFigures, RoundTrips, SchemeFigures
from vfio_intx.microvm.guest import Pin
from vfio_intx.microvm.lane import Lane
from vfio_intx.microvm.real_line import RealLine
from vfio_intx.names import HostIrq
from vfio_intx.wiring.device_files import OpenDevice

_TOO_MANY_LOST = 5
_WORD = 0xFFFF_FFFF
_NOTE_SOFTWARE = "no card file for this device: VFIO's software trigger, which asserts nothing and masks nothing"
_NOTE_LOST = "lost: {}"
_NOTE_OUT = "stopped early: {} assertions of one round were lost"


@dataclass(slots=True)
class DeviceFigures:
    """A run through a real line.

    :ivar bench: the figures of the schemes, as for the model device; there is no ceiling.
    :ivar host_irq: the line, None where sysfs does not tell.
    :ivar host_interrupts: what ``/proc/interrupts`` counted on it during each scheme's rounds. More than were asserted
        means that another device shares it.
    :ivar hand_overs: how often the line was wired and unwired.
    """

    bdf: str
    ids: str
    card: str | None
    host_irq: int | None
    bench: BenchFigures
    host_interrupts: dict[Scheme, int] = field(default_factory=dict)
    hand_overs: int = 0


class _Racer:
    """One scheme's lane with its figures."""

    def __init__(self, lane: Lane, root: HostRoot, host_irq: int | None) -> None:
        self.lane = lane
        self.figures = SchemeFigures(lane.scheme, Pin.IOAPIC)
        self.trips = RoundTrips()
        self.host_interrupts = 0
        self.is_in = True
        self._root, self._host_irq = root, host_irq

    def round(self, count: int, durations: array[int]) -> None:
        """Take the line, race, give it back; the figures are those of complete rounds."""
        if not self.is_in:
            return
        lane, figures = self.lane, self.figures
        lane.wire()
        try:
            before = lane.handler_runs, lane.idle_runs, lane.wiring.wakeups, self._count()
            began = time.perf_counter()
            tally = lane.race(count, durations, ALLOWED_S, _TOO_MANY_LOST, grace_s=GRACE_S)
            seconds = time.perf_counter() - began
            lane.wiring.check()
            lane.settle()
            figures.handler_runs += lane.handler_runs - before[0] & _WORD
            figures.repeated += lane.idle_runs - before[1] & _WORD
            if not lane.has_registers:
                # Nothing to look at, so the handler cannot tell: every run beyond the first of each is a repeated one.
                figures.repeated = figures.handler_runs - figures.acknowledged - tally.acknowledged
            figures.wakeups += lane.wiring.wakeups - before[2]
            self.host_interrupts += self._count() - before[3]
        finally:
            lane.unwire()
        figures.triggers += tally.asserted
        figures.acknowledged += tally.acknowledged
        figures.lost += tally.lost
        figures.late += tally.late
        figures.seconds += seconds
        self.trips.add(durations, tally.asserted)
        if tally.lost >= _TOO_MANY_LOST:
            self.is_in = False
            figures.notes.append(_NOTE_OUT.format(tally.lost))

    def _count(self) -> int:
        if self._host_irq is None:
            return 0
        irq = HostIrq(self._host_irq)
        return read_counts(self._root, [irq]).get(irq, 0)


def schemes_for(line: RealLine, wanted: Sequence[Scheme] | None) -> list[Scheme]:
    """The schemes to race: all that the line can be wired with, or those of them that were asked for.

    :raise MissingError: none of those asked for is possible through this line.
    """
    possible = [scheme for scheme in line.schemes if wanted is None or scheme in wanted]
    if not possible:
        names = ", ".join(scheme.value for scheme in line.schemes)
        raise MissingError(f"none of these schemes goes through {line.opened.device.name}", hint=f"one of {names}")
    return possible


def race_device(
    kvm_fd: int,
    opened: OpenDevice,
    root: HostRoot,
    schemes: Sequence[Scheme] | None,
    count: int,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> DeviceFigures:
    """Race *schemes* (None: all possible ones) over *count* interrupts each through the device's own line.

    :return: the figures; after Ctrl-C those of the rounds that had ended, marked as partial.
    :raise MissingError: no INTx, or no such scheme through this line. :raise BusyError: the host IRQ is taken.
    :raise KernelError: another step failed. However it ends, the device's INTx is off and the card is quiet.
    """
    # Read anew: opening it enabled it, and a function that nobody enabled before had no line until then.
    irq = (read_function(root, opened.function.bdf) or opened.function).intx_irq.value
    rounds = rounds_of(count)
    durations = array("Q", bytes(8 * max(rounds)))
    partial = False
    with ExitStack() as stack:
        line = stack.enter_context(RealLine(opened, root))
        racers = []
        for scheme in schemes_for(line, schemes):
            lane = Lane(kvm_fd, line, scheme, GSI[Pin.IOAPIC])
            stack.callback(lane.close)
            racers.append(_Racer(lane, root, irq))
        try:
            for done, length in enumerate(rounds):
                for racer in racers:
                    racer.round(length, durations)
                progress(done + 1, len(rounds))
        except KeyboardInterrupt:
            partial = True
        return _figures(line, racers, partial, irq)


def _figures(line: RealLine, racers: Sequence[_Racer], partial: bool, irq: int | None) -> DeviceFigures:
    for racer in racers:
        racer.figures.round_trip = racer.trips.percentiles()
        if not line.asserter.real:
            racer.figures.notes.append(_NOTE_SOFTWARE)
        if racer.figures.late:
            racer.figures.notes.append(note_late(racer.figures.late))
        racer.figures.notes += [_NOTE_LOST.format(state) for state in racer.lane.remains]
    function = line.opened.function
    return DeviceFigures(
        bdf=str(function.bdf),
        ids=str(function.ids.value or "unknown"),
        card=line.card.name if line.card else None,
        host_irq=irq,
        bench=BenchFigures([racer.figures for racer in racers], None, partial),
        host_interrupts={racer.figures.scheme: racer.host_interrupts for racer in racers},
        hand_overs=line.hand_overs,
    )


def device_payload(figures: DeviceFigures) -> dict[str, object]:
    """The ``device`` object of ``bench --json``. ``assertion`` is ``card`` (its real interrupt) or ``software``."""
    return {
        "bdf": figures.bdf,
        "ids": figures.ids,
        "card": figures.card,
        "assertion": "card" if figures.card else "software",
        "host_irq": figures.host_irq,
        "host_interrupts": {scheme.value: count for scheme, count in figures.host_interrupts.items()},
        "hand_overs": figures.hand_overs,
    }
