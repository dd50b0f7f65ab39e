"""A VM of one vCPU on ``/dev/kvm``: memory, interrupt controllers, the guest of :mod:`vfio_intx.microvm.guest`.

Building one takes a fraction of a millisecond and needs no device. Everything it holds is given back by
:meth:`Machine.close`, in reverse order of need; the class is a context manager for that.
"""

from __future__ import annotations

import errno
import mmap
from enum import Enum
from types import TracebackType

from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all
from vfio_intx.abi.kvm_vcpu import set_registers, set_unreal_mode
from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, MissingError, VerifyError
from vfio_intx.microvm import guest
from vfio_intx.microvm.guest import Command, GuestParameters, Word
from vfio_intx.microvm.vcpu import ExitHandler, NoExits, VcpuThread

_RAM_SLOT = 0
_TSS_ADDRESS = 0xFFFB_D000
_RFLAGS_FIXED = 0x2
#: For the guest to come up, and to get where it is awaited: microseconds once it gets CPU time.
_READY_S = _ANSWER_S = 10.0
_NO_IRQCHIP = (errno.ENOTTY, errno.EINVAL)


class Irqchip(Enum):
    """Where the interrupt controllers live."""

    FULL = "full"
    """IOAPIC, PICs and LAPIC in the kernel."""
    SPLIT = "split"
    """Only the LAPIC in the kernel; 24 GSIs are kept for an IOAPIC in userspace."""
    NONE = "none"
    """No controllers at all: nothing can run, but KVM_IRQFD can be asked what it says to that."""


class Machine:
    """A VM with its memory and controllers; its guest runs between :meth:`start` and :meth:`stop`.

    :ivar fd: the VM's descriptor, for the calls of :mod:`vfio_intx.abi.kvm`.
    :ivar mailbox: the guest's mailbox, indexed by :class:`~vfio_intx.microvm.guest.Word`; empty before :meth:`load`.
    """

    def __init__(self, kvm_fd: int, irqchip: Irqchip = Irqchip.FULL) -> None:
        """Create the VM. *kvm_fd* stays the caller's.

        :raise MissingError: this kernel has no in-kernel irqchip of that kind.
        :raise BusyError: another hypervisor. :raise KernelError: otherwise. Nothing is left open.
        """
        self.irqchip = irqchip
        self.mailbox = memoryview(b"").cast("I")
        self.vcpu: VcpuThread | None = None
        self._vcpu_fd: int | None = None
        self._page: mmap.mmap | None = None
        self._page_view: memoryview | None = None
        self._ram: mmap.mmap | None = None
        self._slots = 1
        self._kvm_fd = kvm_fd
        self.fd = kvm.create_vm(kvm_fd)
        try:
            self._create_irqchip()
        except BaseException:
            self.close()
            raise

    def _create_irqchip(self) -> None:
        kvm.set_tss_address(self.fd, _TSS_ADDRESS)
        try:
            if self.irqchip is Irqchip.FULL:
                kvm.create_irqchip(self.fd)
            elif self.irqchip is Irqchip.SPLIT:
                kvm.create_split_irqchip(self.fd)
        except KernelError as error:
            if error.errno not in _NO_IRQCHIP:
                raise
            raise MissingError(
                f"this kernel's KVM has no {self.irqchip.value} in-kernel irqchip ({error.errno_name})",
                hint="it was built without CONFIG_KVM_IOAPIC, or too old; without one no INTx line can be forwarded",
            ) from error

    def load(self, parameters: GuestParameters) -> None:
        """Give the machine its memory, its vCPU and the guest. Once a machine. :raise KernelError: see errno."""
        self._ram = mmap.mmap(-1, guest.MEMORY_SIZE)
        kvm.set_memory(self.fd, _RAM_SLOT, 0, guest.MEMORY_SIZE, kvm.address_of(self._ram))
        self.mailbox = guest.load(self._ram, parameters)
        self._vcpu_fd = kvm.create_vcpu(self.fd)
        self._page = mmap.mmap(self._vcpu_fd, kvm.run_page_size(self._kvm_fd))
        self._page_view = memoryview(self._page)
        set_unreal_mode(self._vcpu_fd)
        set_registers(self._vcpu_fd, rip=guest.CODE, rsp=guest.STACK_TOP, rflags=_RFLAGS_FIXED)

    def map_memory(self, guest_address: int, memory: mmap.mmap, size: int) -> int:
        """Let the guest see a mapping of this process (registers, a BAR); the slot's number.

        The mapping stays the caller's, who closes it after the machine. :raise KernelError: an address in use.
        """
        slot = self._slots
        kvm.set_memory(self.fd, slot, guest_address, size, kvm.address_of(memory))
        self._slots += 1
        return slot

    def start(self, handler: ExitHandler | None = None) -> None:
        """Run the guest and wait until it has programmed its pin.

        :param handler: answers the guest's exits; without one, any exit stops the machine.
        :raise UnexpectedExit: the vCPU left the guest. :raise VerifyError: the guest does not come up.
        """
        assert self._vcpu_fd is not None, "load() comes first"
        assert self._page_view is not None
        self.vcpu = VcpuThread(self._vcpu_fd, self._page_view, handler or NoExits())
        self.vcpu.start()
        self.wait_for(Word.READY, guest.READY_MARK, "guest to program its pin", _READY_S)

    def wait_for(self, word: Word, value: int, what: str, seconds: float = _ANSWER_S) -> None:
        """Wait until a mailbox word has a value. :raise VerifyError: naming *what*; and as :meth:`check`."""
        deadline = Deadline.after(what, seconds)

        def reached() -> bool:
            self.check()
            return bool(self.mailbox[word] == value)

        if not deadline.poll(reached, first_s=0.00005, most_s=0.01):
            raise VerifyError(f"waited {seconds:g} s for the {what} in vain ({word.name} is {self.mailbox[word]:#x})")

    def command(self, command: Command) -> None:
        """Let the guest do something now, and wait until it has. :raise VerifyError: it does not answer."""
        expected = self.mailbox[Word.DOORBELLS] + 1 & 0xFFFF_FFFF
        self.mailbox[Word.COMMAND] = command
        kvm.signal_msi(self.fd, guest.DOORBELL_VECTOR)
        self.wait_for(Word.DOORBELLS, expected, f"guest to {command.name.lower().replace('_', ' the ')}")

    def pin_rests(self, gsi: int, pin: guest.Pin) -> bool:
        """Whether nothing is under way on that pin: it is low, and no EOI is due. Of a full irqchip only.

        A count of handler runs that stands still may belong to a vCPU that gets no CPU time; a pin at rest does not.
        """
        if pin is guest.Pin.IOAPIC:
            ioapic = kvm.decode_ioapic(kvm.get_irqchip(self.fd, kvm.Chip.IOAPIC))
            return not ioapic.is_requested(gsi) and not ioapic.is_remote_irr(gsi)
        chip, bit = (kvm.Chip.PIC_SLAVE, gsi - 8) if gsi >= 8 else (kvm.Chip.PIC_MASTER, gsi)
        pic = kvm.decode_pic(kvm.get_irqchip(self.fd, chip))
        return not (pic.irr | pic.isr) >> bit & 1

    def check(self) -> None:
        """:raise UnexpectedExit: the vCPU has stopped by itself."""
        if self.vcpu is not None:
            self.vcpu.check()

    @property
    def exits(self) -> int:
        """How often the guest's business came to userspace since :meth:`start`."""
        return self.vcpu.exits if self.vcpu is not None else 0

    def stop(self) -> None:
        """Take the vCPU out of the guest; harmless if it does not run."""
        if self.vcpu is not None:
            self.vcpu.stop()
            self.vcpu = None

    def close(self) -> None:
        """Stop the guest and give everything back. Harmless when done twice."""
        self.stop()
        self.mailbox.release()
        if self._page_view is not None:
            self._page_view.release()
        for mapping in (self._page, self._ram):
            if mapping is not None:
                mapping.close()
        close_all(self._vcpu_fd, self.fd)
        self._page_view = self._page = self._ram = self._vcpu_fd = None
        self.fd = -1

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
