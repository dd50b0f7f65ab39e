"""``ack-eventfd``: userspace injects, and an eventfd tells it of the EOI.

The eventfd for EOIs is a resample irqfd whose trigger nobody ever writes. KVM lowers only its own source of the level
(source 1); userspace's (source 0) stays up until userspace has been woken and lowers it, and until then the guest is
interrupted again.
"""

from __future__ import annotations

from typing import ClassVar

from vfio_intx.abi import eventfd, kvm
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.eventloop import EventLoop
from vfio_intx.microvm.machine import Machine
from vfio_intx.microvm.schemes.line import Ends, Wiring


class AckEventfd(Wiring):
    """A thread of the VMM that is woken for the trigger and for the EOI."""

    scheme: ClassVar[Scheme] = Scheme.ACK_EVENTFD

    def __init__(self, machine: Machine, ends: Ends) -> None:
        super().__init__(machine, ends)
        self._high = kvm.encode_line(ends.gsi, 1)
        self._low = kvm.encode_line(ends.gsi, 0)
        self._never = self._acknowledged = -1
        self._loop: EventLoop | None = None

    def wire(self) -> None:
        """Bind the EOI eventfd to the GSI and listen."""
        self._never, self._acknowledged = eventfd.create(), eventfd.create()
        try:
            kvm.assign_irqfd(self.machine.fd, self._never, self.ends.gsi, self._acknowledged)
        except BaseException:
            self._close()
            raise
        self._loop = EventLoop({self.ends.trigger: self._inject, self._acknowledged: self._eoi})

    def unwire(self) -> None:
        """Stop listening, unbind, lower the line."""
        if self._loop is not None:
            self._loop.stop()
            kvm.deassign_irqfd(self.machine.fd, self._never, self.ends.gsi)
            kvm.set_line(self.machine.fd, self._low)
            self._close()
            self._loop = None

    @property
    def wakeups(self) -> int:
        """Exits of the vCPU (none are expected) and wake-ups of the thread."""
        return self.machine.exits + (self._loop.wakeups if self._loop is not None else 0)

    def check(self) -> None:
        """:raise VfioIntxError: a thread has died."""
        super().check()
        if self._loop is not None:
            self._loop.check()

    def _inject(self) -> None:
        kvm.set_line(self.machine.fd, self._high)

    def _eoi(self) -> None:
        kvm.set_line(self.machine.fd, self._low)
        eventfd.signal(self.ends.unmask)

    def _close(self) -> None:
        close_all(self._never, self._acknowledged)
        self._never = self._acknowledged = -1
