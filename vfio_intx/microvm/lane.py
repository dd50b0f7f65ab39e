"""One scheme on a real line, raced as with the model device: assert, wait until the card is quiet and the line open.

How a round's end is noticed without standing in its way: KVM signals the resample eventfds of *all* resample irqfds
of a GSI, so a second one, whose trigger nobody writes, tells of each EOI. Whether the line is open again is in the
card's own Command register (DisINTx, which VFIO masks with). Neither has a part in the chain.
"""

from __future__ import annotations

import select
import time
from array import array
from collections.abc import Callable

from vfio_intx.abi import eventfd, kvm
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.deadline import Deadline
from vfio_intx.errors import RefusedError, VerifyError
from vfio_intx.microvm.device import Tally
from vfio_intx.microvm.guest import Pin, Word
from vfio_intx.microvm.machine import Machine
from vfio_intx.microvm.real_line import RealLine
from vfio_intx.microvm.schemes import Wiring, wiring_of
from vfio_intx.wiring.direct import line_steps, unmask_eventfd_step
from vfio_intx.wiring.undoable import Step, Wired, perform

#: For the guest to end an interrupt. A busy host may leave it alone for seconds.
_SETTLE_S = 10.0
#: Between two looks at a line that userspace has yet to open. A real sleep: on one CPU it lets userspace do so.
_PAUSE_S = 0.00002


class Lane:
    """One scheme on a real line: a machine of its own, wired to the line for a while and off it again."""

    def __init__(self, kvm_fd: int, line: RealLine, scheme: Scheme, gsi: int) -> None:
        """A running guest, not wired yet. :raise RefusedError: a scheme that this line cannot be wired with."""
        if scheme not in line.schemes:
            raise RefusedError(f"{scheme.value} cannot be raced through {line.opened.device.name}")
        self.scheme, self._line, self._gsi = scheme, line, gsi
        #: How things stood behind each interrupt that was lost.
        self.remains: list[str] = []
        self._wired: Wired | None = None
        self._eoi = self._never = -1
        self._poller = select.poll()
        self.machine = Machine(kvm_fd)
        try:
            self._eoi, self._never = eventfd.create(), eventfd.create()
            self._poller.register(self._eoi, select.POLLIN)
            self.machine.load(line.guest(gsi))
            self.wiring: Wiring = wiring_of(scheme, self.machine, line.ends(gsi))
            if not self.wiring.traps_registers:
                line.show_registers(self.machine)
            self.machine.start(self.wiring.handler)
            assert self.machine.vcpu is not None
            self._poller.register(self.machine.vcpu.gone, select.POLLIN)
        except BaseException:
            self.close()
            raise

    @property
    def handler_runs(self) -> int:
        """How often the guest's handler ran so far."""
        return int(self.machine.mailbox[Word.HANDLER_RUNS])

    @property
    def idle_runs(self) -> int:
        """How often it found nothing to do."""
        return int(self.machine.mailbox[Word.IDLE_RUNS])

    @property
    def has_registers(self) -> bool:
        """Whether the guest has a cause register to read."""
        return self._line.card is not None

    def wire(self) -> None:
        """Join card and guest, in the one safe order. :raise KernelError: a step failed, INTx is off again."""
        line, vm, gsi = self._line, self.machine.fd, self._gsi
        line.drain()
        eventfd.drain(self._eoi)
        observer = Step(
            "observer",
            f"KVM tells of each EOI on eventfd {self._eoi}",
            # First of the two on the GSI: KVM signals the latest first, so the line is open when we hear of the EOI.
            do=lambda: kvm.assign_irqfd(vm, self._never, gsi, self._eoi),
            undo=lambda: kvm.deassign_irqfd(vm, self._never, gsi),
        )
        scheme = Step(self.scheme.value, f"scheme {self.scheme.value}", do=self.wiring.wire, undo=self.wiring.unwire)
        unmask = unmask_eventfd_step(line.opened.device, line.eventfds.resample)
        self._wired = perform(line_steps(line.opened.device, line.eventfds.trigger, (observer, scheme, unmask)))
        line.hand_overs += 1

    def unwire(self) -> None:
        """Take them apart, INTx off. Harmless when not wired."""
        if self._wired is not None:
            wired, self._wired = self._wired, None
            wired.unwire()

    def race(
        self, count: int, durations: array[int], allowed_s: float, bearable: int, *, grace_s: float = 0.0
    ) -> Tally:
        """Assert *count* times, each time waiting until the guest has quieted the card and the line is open.

        :param durations: where the round trips go, in ns; 0 stands for a lost one.
        :param allowed_s: how long one may take. After that it is waited for *grace_s* more, and is late if it comes,
            and lost if not; then :attr:`remains` says how things stood, and the line is reset. There is no more grace
            once one was lost.
        :param bearable: stop after so many lost ones.
        :return: the figures; fewer than *count* assertions if that stopped it, or if the vCPU has died.
        :raise VerifyError: the guest's pin does not come to rest between two interrupts.
        """
        words, poll, eoi, now = self.machine.mailbox, self._poller.poll, self._eoi, time.perf_counter_ns
        fire, is_at_rest = self._line.asserter.fire, self._line.is_at_rest
        runs, allowed_ms = Word.HANDLER_RUNS, int(allowed_s * 1000)
        acknowledged, lost, late, place = 0, 0, 0, 0
        while place < count and lost < bearable:
            self._rest()
            before = words[runs]
            began = now()
            fire()
            grace = 0.0 if lost else grace_s
            ready = poll(allowed_ms) or poll(int(grace * 1000))
            if ready and ready[0][0] != eoi:
                return Tally(place, acknowledged, lost, late=late)
            # At once under irqfd. Elsewhere userspace, which hears of the EOI when we do, has yet to open the line.
            done = words[runs] != before and is_at_rest()
            if ready and (done or self._is_through(before, allowed_s + grace)):
                durations[place] = trip = now() - began
                acknowledged += 1
                late += trip > allowed_s * 1e9
            else:
                durations[place] = 0
                lost += 1
                self.remains.append(self._state(before, heard=bool(ready)))
                self._line.reset()
            place += 1
        return Tally(place, acknowledged, lost, late=late)

    def _state(self, before: int, *, heard: bool) -> str:
        """How things stand behind an interrupt that does not end: which link of the chain it got to."""
        runs = self.machine.mailbox[Word.HANDLER_RUNS] - before & 0xFFFF_FFFF
        command, status = self._line.physical()
        ioapic = kvm.decode_ioapic(kvm.get_irqchip(self.machine.fd, kvm.Chip.IOAPIC))
        pin = "up" if ioapic.is_requested(self._gsi) else "down"
        eoi = "awaited" if ioapic.is_remote_irr(self._gsi) else "heard" if heard else "never heard"
        return f"handler runs {runs}, Command {command:#06x}, Status {status:#06x}, guest's pin {pin}, EOI {eoi}"

    def _is_through(self, before: int, allowed_s: float) -> bool:
        """Wait until the handler has run since its count was *before*, and the line is at rest."""
        words, line = self.machine.mailbox, self._line
        return _reached(lambda: words[Word.HANDLER_RUNS] != before and line.is_at_rest(), allowed_s)

    def _rest(self) -> None:
        """Wait until the last interrupt has left no trace, so that what is heard next belongs to the next one.

        Where userspace lowers the level, the guest is interrupted again until it has done so. The pin is at rest once
        it is low and no EOI is due; KVM signals an EOI before it clears that mark, so none is under way then.
        """
        if self.scheme is not Scheme.IRQFD:
            self.settle()
        eventfd.drain(self._eoi)

    def settle(self) -> None:
        """Wait until all handler runs of the last round are over.

        :raise VerifyError: they go on. :raise UnexpectedExit: the vCPU has died.
        """
        if not _reached(lambda: self.machine.pin_rests(self._gsi, Pin.IOAPIC), _SETTLE_S):
            self.wiring.check()
            raise VerifyError(f"waited {_SETTLE_S:g} s for the guest's pin to come to rest in vain")

    def close(self) -> None:
        """Unwire, stop the guest, give everything back. Harmless when done twice."""
        try:
            self.unwire()
        finally:
            self.machine.close()
            close_all(self._eoi, self._never)
            self._eoi = self._never = -1


def _reached(ready: Callable[[], bool], seconds: float) -> bool:
    deadline = Deadline.after("a line at rest", seconds)
    while not ready():
        if deadline.passed():
            return False
        time.sleep(_PAUSE_S)
    return True
