"""``trap``: userspace injects, and takes any access to the card's registers for the end of the interrupt.

This is what QEMU does with ``x-no-kvm-intx=on``: the BAR is not mapped while an interrupt is pending, so the guest's
accesses come to userspace, and the first of them lowers the level and unmasks the line. It is a guess. A handler that
reads the cause before it quiets the card has the line unmasked too early, the card still asserts, and fires again.
"""

from __future__ import annotations

from typing import ClassVar

from vfio_intx.abi import eventfd, kvm
from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.eventloop import EventLoop
from vfio_intx.microvm.machine import Machine
from vfio_intx.microvm.schemes.line import Ends, Registers, Wiring
from vfio_intx.microvm.vcpu import NoExits


class Trap(Wiring):
    """A thread for the trigger; the guess is made in the vCPU's thread, where the access arrives."""

    scheme: ClassVar[Scheme] = Scheme.TRAP
    traps_registers: ClassVar[bool] = True

    def __init__(self, machine: Machine, ends: Ends) -> None:
        super().__init__(machine, ends)
        assert ends.registers is not None, "the trap scheme needs a way to the registers"
        self._high = kvm.encode_line(ends.gsi, 1)
        self._low = kvm.encode_line(ends.gsi, 0)
        self._vm = machine.fd
        #: Whether an interrupt was injected whose end has yet to be guessed.
        self.pending = False
        self._loop: EventLoop | None = None
        self._handler = _TrappedBar(self, ends.registers)

    @property
    def handler(self) -> _TrappedBar:
        """The BAR's registers, trapped."""
        return self._handler

    def wire(self) -> None:
        """Listen to the trigger."""
        self._loop = EventLoop({self.ends.trigger: self._inject})

    def unwire(self) -> None:
        """Stop listening and lower the line."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None
            self.pending = False
            kvm.set_line(self.machine.fd, self._low)

    @property
    def wakeups(self) -> int:
        """Exits of the vCPU for register accesses and wake-ups of the thread."""
        return self.machine.exits + (self._loop.wakeups if self._loop is not None else 0)

    def check(self) -> None:
        """:raise VfioIntxError: a thread has died."""
        super().check()
        if self._loop is not None:
            self._loop.check()

    def _inject(self) -> None:
        # In this order: an access that comes in between is then ignored, the level stays up, and the guest's next run
        # of the handler makes another. The other way round it would lower a level that is raised only afterwards, and
        # that nobody lowers any more.
        kvm.set_line(self._vm, self._high)
        self.pending = True

    def accessed(self) -> None:
        """The guest touched the BAR: take that for the EOI, if one is awaited (``vfio_intx_eoi`` of QEMU)."""
        if self.pending:
            self.pending = False
            kvm.set_line(self._vm, self._low)
            eventfd.signal(self.ends.unmask)


class _TrappedBar(NoExits):
    """Performs the guest's accesses to the BAR, and tells the scheme of each, afterwards as QEMU does."""

    def __init__(self, scheme: Trap, registers: Registers) -> None:
        self._scheme = scheme
        self._read, self._write = registers.read, registers.write
        self._first, self._size = scheme.ends.bar, scheme.ends.bar_size

    def read(self, address: int) -> int | None:
        offset = address - self._first
        if not 0 <= offset < self._size:
            return None
        value = self._read(offset)
        if self._scheme.pending:
            self._scheme.accessed()
        return value

    def write(self, address: int, value: int) -> bool:
        offset = address - self._first
        if not 0 <= offset < self._size:
            return False
        self._write(offset, value)
        if self._scheme.pending:
            self._scheme.accessed()
        return True
