"""The hard moments of a level line, each brought about on purpose with a guest that waits where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vfio_intx.abi import eventfd, kvm
from vfio_intx.abi.call import close_all
from vfio_intx.abi.kvm import Chip, PinRoute
from vfio_intx.deadline import Deadline
from vfio_intx.microvm import device
from vfio_intx.microvm.contest import BAR, GSI
from vfio_intx.microvm.device import LevelDevice
from vfio_intx.microvm.guest import Command, GuestParameters, Hold, Pin, Quiet, Word
from vfio_intx.microvm.machine import Machine
from vfio_intx.microvm.trials.row import Ground, Row, judged

_SECOND_BAR = BAR + 0x1000
_WAIT_S = 5.0
#: Long enough for anything that was going to happen by mistake.
_QUIET_S = 0.01
_SHARED_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Bed:
    """A running guest with one card, wired by ``irqfd``."""

    machine: Machine
    card: LevelDevice
    gsi: int

    @property
    def runs(self) -> int:
        """Runs of the guest's handler so far."""
        return self.machine.mailbox[Word.HANDLER_RUNS]

    def hold(self, place: Hold) -> None:
        """Let the next handler run wait there, or (``NONE``) let it go on."""
        self.machine.mailbox[Word.HOLD] = place

    def until(self, ready: Callable[[], bool], seconds: float = _WAIT_S) -> bool:
        """Wait for something; whether it came. :raise UnexpectedExit: the vCPU died meanwhile."""

        def look() -> bool:
            self.machine.check()
            return ready()

        return Deadline.after("trial", seconds).poll(look, first_s=0.0001, most_s=0.002)

    def serve(self, quiet: Callable[[], bool], seconds: float = _WAIT_S) -> bool:
        """Act as vfio does on every unmask until *quiet*; whether that came."""

        def look() -> bool:
            self.card.take_unmask()
            return quiet()

        return self.until(look, seconds)

    def is_quiet(self) -> bool:
        """Whether the card is quiet and its line open."""
        return not self.card.is_asserting and not self.card.masked


@contextmanager
def bed(ground: Ground, pin: Pin = Pin.IOAPIC, second: LevelDevice | None = None) -> Iterator[Bed]:
    """A bed on that pin; with *second*, a second card on the same GSI that the guest quiets as well."""
    with ExitStack() as stack:
        card = LevelDevice()
        stack.callback(card.close)
        machine = stack.enter_context(Machine(ground.kvm_fd))
        addresses = (BAR + device.CAUSE, BAR + device.ACKNOWLEDGE)
        others = (_SECOND_BAR + device.CAUSE, _SECOND_BAR + device.ACKNOWLEDGE)
        quiet = Quiet.SEQUENCE if second is None else Quiet.SEQUENCE_TWO
        machine.load(GuestParameters(GSI[pin], pin, quiet, *addresses, *others))
        machine.map_memory(BAR, card.memory, device.PAGE)
        if second is not None:
            machine.map_memory(_SECOND_BAR, second.memory, device.PAGE)
            kvm.assign_irqfd(machine.fd, second.trigger, GSI[pin], second.unmask)
        machine.start()
        kvm.assign_irqfd(machine.fd, card.trigger, GSI[pin], card.unmask)
        yield Bed(machine, card, GSI[pin])


def rows(ground: Ground) -> Iterator[Row]:
    """The hard moments, in the order in which an interrupt meets them."""
    for pin in Pin:
        yield _early(ground, pin)
    yield judged(
        "two cards on one GSI",
        f"{_SHARED_ROUNDS} asserted in turn, both resampled each time",
        lambda: _shared(ground),
        good="cards may share a guest line",
        bad="of two cards on one guest line, one would stick",
        required=True,
    )
    yield judged(
        "asserted again while acknowledged",
        "2 handler runs, card quiet",
        lambda: _again(ground),
        good="an assertion between the handler and its EOI is not lost",
        bad="a card that asserts at the wrong moment would stick",
        required=True,
    )
    yield judged(
        "pin masked and unmasked with the level up",
        "no handler run while masked, then heard and quiet",
        lambda: _masked(ground),
        good="a guest driver may mask its line with an interrupt pending (oneshot handlers do)",
        bad="a guest driver that masks its line would lose the card",
        required=True,
    )
    yield judged(
        "de-assigned while asserted",
        "level 1, then 0",
        lambda: _deassigned(ground),
        good="taking the scheme away leaves no level behind",
        bad="taking the scheme away would leave the guest's line up: an interrupt storm",
        required=True,
    )
    yield judged(
        "event pending at the assign",
        "1 handler run",
        lambda: _pending(ground),
        good="an interrupt that comes before the wiring is done is not lost",
        bad="an interrupt that comes during the wiring would be lost: unmask the line afterwards",
    )
    yield judged(
        "last descriptor of the trigger closed",
        "binding gone, a new eventfd takes its place",
        lambda: _closed(ground),
        good="an owner that dies leaves no binding behind",
        bad="a dead owner's binding would stay in the VM",
    )

    yield judged(
        "two GSIs on one IOAPIC pin",
        "the one listed last hears the EOI, the other does not",
        lambda: _doubled(ground),
        good="a line whose GSI shares its pin with a later one would stick: each pin has to have one GSI",
        bad="this kernel tells another GSI of the pin than those we know",
    )


def _early(ground: Ground, pin: Pin) -> Row:
    return judged(
        f"no acknowledge before the EOI, {pin.label.upper()} pin",
        "none while the handler waits, one after its EOI",
        lambda: _order(ground, pin),
        good="the acknowledge means that the guest has quieted the card",
        bad="KVM acknowledges before the handler has run: the line opens too early, the card fires again, and the "
        "guest runs its handler more often than needed; nothing is lost",
    )


def _order(ground: Ground, pin: Pin) -> tuple[bool, str]:
    with bed(ground, pin) as line:
        line.hold(Hold.BEFORE_EOI)
        line.card.raise_line()
        line.machine.wait_for(Word.HELD, Hold.BEFORE_EOI, "guest to enter its handler")
        early = line.until(lambda: bool(eventfd.drain(line.card.unmask)), _QUIET_S)
        line.hold(Hold.NONE)
        late = line.until(lambda: bool(eventfd.drain(line.card.unmask)), _QUIET_S if early else _WAIT_S)
    seen = ("one" if early else "none") + " while the handler waits, " + ("one" if late else "none") + " after its EOI"
    return late and not early, seen


def _shared(ground: Ground) -> tuple[bool, str]:
    other = LevelDevice()
    heard = 0
    try:
        with bed(ground, second=other) as line:
            for number in range(_SHARED_ROUNDS):
                card = (line.card, other)[number % 2]
                signalled: set[LevelDevice] = set()
                card.raise_line()

                def both(signalled: set[LevelDevice] = signalled) -> bool:
                    signalled.update(each for each in (line.card, other) if each.take_unmask())
                    return len(signalled) == 2 and not line.card.is_asserting and not other.is_asserting

                heard += line.until(both)
    finally:
        other.close()
    return heard == _SHARED_ROUNDS, f"{_SHARED_ROUNDS} asserted in turn, both resampled {heard} times"


def _again(ground: Ground) -> tuple[bool, str]:
    with bed(ground) as line:
        line.hold(Hold.BEFORE_EOI)
        line.card.raise_line()
        line.machine.wait_for(Word.HELD, Hold.BEFORE_EOI, "guest to enter its handler")
        line.card.raise_line()
        line.hold(Hold.NONE)
        quiet = line.serve(line.is_quiet)
        runs = line.runs
    return quiet and runs == 2, f"{runs} handler runs, card {'quiet' if quiet else 'still asserting'}"


def _masked(ground: Ground) -> tuple[bool, str]:
    with bed(ground) as line:
        line.machine.command(Command.MASK_PIN)
        line.card.raise_line()
        line.until(lambda: line.runs > 0, _QUIET_S)
        while_masked = line.runs
        line.machine.command(Command.UNMASK_PIN)
        runs_before: list[int] = []

        def through() -> bool:
            runs = line.runs
            if line.card.take_unmask():
                runs_before.append(runs)
            return line.is_quiet()

        quiet = line.until(through)
        runs = line.runs - while_masked
    # From 6.4 on (fef8f2b90edb) KVM resamples at the unmask and injects nothing by itself; before, it injected.
    first = "resampled" if runs_before and runs_before[0] == while_masked else "injected"
    how = f"{while_masked or 'no'} handler run while masked, {first} at the unmask, then {runs}"
    return quiet and not while_masked and runs > 0, f"{how}, card {'quiet' if quiet else 'still asserting'}"


def _deassigned(ground: Ground) -> tuple[bool, str]:
    with bed(ground) as line:
        line.machine.command(Command.MASK_PIN)
        line.card.raise_line()

        def level() -> bool:
            return kvm.decode_ioapic(kvm.get_irqchip(line.machine.fd, Chip.IOAPIC)).is_requested(line.gsi)

        up = line.until(level)
        kvm.deassign_irqfd(line.machine.fd, line.card.trigger, line.gsi)
        return up and not level(), f"level {up:d}, then {level():d}"


def _pending(ground: Ground) -> tuple[bool, str]:
    with bed(ground) as line:
        kvm.deassign_irqfd(line.machine.fd, line.card.trigger, line.gsi)
        line.card.raise_line()
        kvm.assign_irqfd(line.machine.fd, line.card.trigger, line.gsi, line.card.unmask)
        quiet = line.serve(line.is_quiet)
        return quiet and line.runs > 0, f"{line.runs} handler run"


def _doubled(ground: Ground) -> tuple[bool, str]:
    other, never = eventfd.create(), eventfd.create()
    try:
        with bed(ground) as line:
            routes = [PinRoute(gsi, Chip.IOAPIC, line.gsi) for gsi in (line.gsi, line.gsi + 1)]
            kvm.set_routing(line.machine.fd, routes)
            kvm.assign_irqfd(line.machine.fd, never, line.gsi + 1, other)
            line.card.raise_line()
            last = line.until(lambda: bool(eventfd.drain(other)))
            first = line.until(lambda: bool(eventfd.drain(line.card.unmask)), _QUIET_S)
    finally:
        close_all(other, never)
    words = {True: "hears the EOI", False: "does not"}
    return last and not first, f"the one listed last {words[last]}, the other {words[first]}"


def _closed(ground: Ground) -> tuple[bool, str]:
    with bed(ground) as line:
        first, resample = eventfd.create(), eventfd.create()
        try:
            kvm.assign_irqfd(line.machine.fd, first, line.gsi, resample)
        finally:
            close_all(first)
        second = eventfd.create()
        try:
            kvm.assign_irqfd(line.machine.fd, second, line.gsi, resample)
            eventfd.signal(second)
            heard = line.until(lambda: line.runs > 0)
        finally:
            close_all(second, resample)
    return heard, "binding gone, a new eventfd takes its place" if heard else "the new eventfd is not heard"
