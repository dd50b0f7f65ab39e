"""One scheme ready to race: its machine, its card and its wiring, and the counting of what a round did.

What is counted where. The card (:mod:`~vfio_intx.microvm.device`) stands for hardware and for vfio, which live outside
the VMM: it counts assertions, unmasks and round trips, and its own wake-ups are nobody's. The guest counts the runs of
its handler and those that found nothing to do. The wiring counts the wake-ups of the VMM: exits of the vCPU to
userspace and eventfds its thread waited for.
"""

from __future__ import annotations

import time
from array import array

from vfio_intx.chain.scheme import Scheme
from vfio_intx.deadline import Deadline
from vfio_intx.errors import VerifyError
from vfio_intx.microvm import device
from vfio_intx.microvm.device import LevelDevice, MemoryRegisters
from vfio_intx.microvm.figures import RoundTrips, SchemeFigures
from vfio_intx.microvm.guest import Command, GuestParameters, Hold, Pin, Word
from vfio_intx.microvm.machine import Irqchip, Machine
from vfio_intx.microvm.schemes import Ends, Wiring, irqchip_of, wiring_of

BAR = 0xE000_0000
GSI = {Pin.IOAPIC: 20, Pin.PIC: 10}
#: How long a round trip may take before it counts as late, and how much longer it is waited for before it is lost.
#: A busy host may leave us alone for seconds; what is lost never comes.
ALLOWED_S, GRACE_S = 2.0, 8.0
#: The same where nothing is expected to come back, and how often that is shown.
EDGE_ALLOWED_S, EDGE_ROUNDS = 0.01, 20
#: So many losses in one round and the scheme is out: a billion times two seconds are too long to wait for.
_TOO_MANY_LOST = 5
#: How long an acknowledge that comes too early is waited for.
_EARLY_S = 0.05
_PROBE_ROUNDS, _PROBE_ALLOWED_S = 5, 0.05
#: For the guest to come to rest.
_REST_S = 10.0
_WORD = 0xFFFF_FFFF

_NOTE_EDGE = "every assertion left the line masked; it was then opened by force, {} times, and that is the whole run"
_NOTE_NUDGE = (
    "this host's KVM tells userspace of an EOI only at the next event, so the guest sends itself an IPI after each EOI"
)
_NOTE_EARLY = (
    "this host's KVM acknowledges before the guest's EOI (seen with the guest held in its handler), and so {} of the "
    "unmasks met a card that still asserted; vfio fired again each time, which makes the repeated runs"
)
_NOTE_UNEXPLAINED = (
    "{} of the unmasks met a card that still asserted, although KVM was seen to wait for the guest's EOI"
)
_NOTE_GUESS = "wrong guesses: {}; the access was not the one that quiets the card, and vfio fired again"
_NOTE_STALE = (
    "{} of the unmasks met a card that asserted: they answered a repeated run of the handler, or a KVM that "
    "acknowledges before the handler has run; vfio fired again each time"
)
_NOTE_EXIT = (
    "{} of the unmasks met a card that still asserted: the exit for the EOI came before the guest had quieted it; vfio "
    "fired again each time"
)
_NOTE_OUT = "stopped early: {} assertions in a row of rounds were lost"


def note_late(count: int) -> str:
    """The note on interrupts that took longer than allowed."""
    return f"{count} came back after more than {ALLOWED_S:g} s: late, not lost; the host had no time for us"


def why_refired(figures: SchemeFigures) -> str:
    """The note on unmasks that met a card which still asserted: what brings them about under that scheme."""
    early = _NOTE_EARLY if figures.early else _NOTE_UNEXPLAINED
    note = {Scheme.TRAP: _NOTE_GUESS, Scheme.ACK_EVENTFD: _NOTE_STALE, Scheme.SPLIT: _NOTE_EXIT}
    return note.get(figures.scheme, early).format(figures.refired)


class Contestant:
    """A scheme on a pin, wired and running from construction to :meth:`close`.

    :ivar figures: what has been counted so far; complete after :meth:`finish`.
    """

    def __init__(self, kvm_fd: int, scheme: Scheme, pin: Pin) -> None:
        """Build and start it. :raise VfioIntxError: the machine or the wiring was refused; nothing is left."""
        self.figures = SchemeFigures(scheme, pin)
        self._trips = RoundTrips()
        self._left = True
        self._wiring: Wiring | None = None
        self._machine = Machine(kvm_fd, irqchip_of(scheme))
        try:
            self._device = LevelDevice()
        except BaseException:
            self._machine.close()
            raise
        try:
            self._wiring = self._start(scheme, pin)
            self._probe()
        except BaseException:
            self.close()
            raise

    def _start(self, scheme: Scheme, pin: Pin) -> Wiring:
        line = self._device
        self._machine.load(
            GuestParameters(gsi=GSI[pin], pin=pin, status=BAR + device.CAUSE, acknowledge=BAR + device.ACKNOWLEDGE)
        )
        registers = MemoryRegisters(line.registers)
        ends = Ends(GSI[pin], line.trigger, line.unmask, BAR, device.PAGE, registers)
        wiring = wiring_of(scheme, self._machine, ends)
        if not wiring.traps_registers:
            self._machine.map_memory(BAR, line.memory, device.PAGE)
        self._machine.start(wiring.handler)
        assert self._machine.vcpu is not None
        line.watch(self._machine.vcpu.gone)
        wiring.wire()
        return wiring

    def _probe(self) -> None:
        """Warm up; and where EOIs go to userspace, see whether they do so by themselves."""
        scheme = self.figures.scheme
        if scheme is Scheme.EDGE:
            return
        durations = array("Q", bytes(8 * _PROBE_ROUNDS))
        tally = self._device.race(_PROBE_ROUNDS, durations, _PROBE_ALLOWED_S, 1)
        if scheme is Scheme.SPLIT and tally.lost:
            self._machine.mailbox[Word.NUDGE] = 1
            self.figures.notes.append(_NOTE_NUDGE)
            self._device.race(1, durations, _PROBE_ALLOWED_S, 1)
        self._settle()
        if scheme is Scheme.IRQFD:
            self.figures.early = self._is_early()

    def _is_early(self) -> bool:
        """Whether KVM acknowledges while the guest waits in its handler, before the EOI. The card is quiet afterwards.

        It tells apart what a repeated run of ``irqfd`` comes from: with a KVM that waits, there must be none.
        """
        machine, line = self._machine, self._device
        machine.mailbox[Word.HOLD] = Hold.BEFORE_EOI
        try:
            line.raise_line()
            machine.wait_for(Word.HELD, Hold.BEFORE_EOI, "guest to enter its handler")
            return Deadline.after("early acknowledge", _EARLY_S).poll(line.take_unmask, first_s=0.0001, most_s=0.001)
        finally:
            machine.mailbox[Word.HOLD] = Hold.NONE
            self._settle()

    def race(self, count: int, durations: array[int]) -> None:
        """One round of *count* interrupts, added to the figures when it is complete.

        :param durations: room for *count* round trips, overwritten.
        :raise UnexpectedExit: the vCPU died. :raise VfioIntxError: a thread of the scheme did.
        """
        if not self._left:
            return
        allowed, grace, rounds, bearable = ALLOWED_S, GRACE_S, count, _TOO_MANY_LOST
        if self.figures.scheme is Scheme.EDGE:
            allowed, grace, rounds, self._left = EDGE_ALLOWED_S, 0.0, min(count, EDGE_ROUNDS), False
            bearable = rounds
        assert self._wiring is not None
        mailbox, wiring, figures = self._machine.mailbox, self._wiring, self.figures
        before = mailbox[Word.HANDLER_RUNS], mailbox[Word.IDLE_RUNS], wiring.wakeups
        began = time.perf_counter()
        tally = self._device.race(rounds, durations, allowed, bearable, grace_s=grace)
        seconds = time.perf_counter() - began
        wiring.check()
        self._settle()
        figures.handler_runs += mailbox[Word.HANDLER_RUNS] - before[0] & _WORD
        figures.repeated += mailbox[Word.IDLE_RUNS] - before[1] & _WORD
        figures.wakeups += wiring.wakeups - before[2]
        figures.triggers += tally.asserted
        figures.acknowledged += tally.acknowledged
        figures.lost += tally.lost
        figures.refired += tally.refired
        figures.late += tally.late
        figures.seconds += seconds
        self._trips.add(durations, tally.asserted)
        if tally.lost >= _TOO_MANY_LOST and self._left:
            self._left = False
            figures.notes.append(_NOTE_OUT.format(tally.lost))

    def _settle(self) -> None:
        """Wait until no handler run is under way or to come any more: an idle one may follow the last unmask."""
        if not Deadline.after("the guest at rest", _REST_S).poll(self._rests, first_s=0.0001):
            raise VerifyError(f"{self.figures.scheme.value}: the guest's handler keeps running with the card quiet")
        self._device.take_unmask()
        self._device.masked = False

    def _rests(self) -> bool:
        machine, pin = self._machine, self.figures.pin
        machine.check()
        # Where the controllers are in userspace, the doorbell alone has to do.
        if machine.irqchip is not Irqchip.SPLIT and not machine.pin_rests(GSI[pin], pin):
            return False
        runs = machine.mailbox[Word.HANDLER_RUNS]
        # A KVM that acknowledges early has the pin at rest while the vCPU has yet to come to its handler.
        machine.command(Command.NOTHING)
        return bool(machine.mailbox[Word.HANDLER_RUNS] == machine.mailbox[Word.HANDLER_ENDS] == runs)

    def finish(self) -> SchemeFigures:
        """The figures with their percentiles and notes."""
        figures = self.figures
        figures.round_trip = self._trips.percentiles()
        if figures.late:
            figures.notes.append(note_late(figures.late))
        if figures.scheme is Scheme.EDGE and figures.triggers:
            figures.notes.append(_NOTE_EDGE.format(figures.triggers))
        elif figures.refired:
            figures.notes.append(why_refired(figures))
        return figures

    def close(self) -> None:
        """Unwire, stop, give back. Harmless when done twice."""
        if self._wiring is not None:
            self._wiring.unwire()
            self._wiring = None
        self._machine.close()
        self._device.close()
