"""A vCPU: its registers, the page it shares with the kernel, and the one call that runs it.

:func:`run` is what the vCPU's thread spends its life in. It holds no Python lock while the guest runs, and it
allocates nothing. The layout of the shared page is ``struct kvm_run`` of ``include/uapi/linux/kvm.h``.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from vfio_intx.abi.call import _IO, _IOR, _IOW, call_buffer
from vfio_intx.abi.kvm import KVMIO
from vfio_intx.errors import KernelError

REGS = struct.Struct("=18Q")
SEGMENT = struct.Struct("=QIH9Bx")
SREGS = struct.Struct("=" + "QIH9Bx" * 8 + "QH6x" * 2 + "7Q" + "4Q")
SIGNAL_MASK = struct.Struct("=IQ")

KVM_RUN = _IO(KVMIO, 0x80)
KVM_GET_REGS = _IOR(KVMIO, 0x81, REGS.size)
KVM_SET_REGS = _IOW(KVMIO, 0x82, REGS.size)
KVM_GET_SREGS = _IOR(KVMIO, 0x83, SREGS.size)
KVM_SET_SREGS = _IOW(KVMIO, 0x84, SREGS.size)
# The size in the number is that of the head alone: the signal set is a flexible array.
KVM_SET_SIGNAL_MASK = _IOW(KVMIO, 0x8B, 4)

#: Offsets in ``struct kvm_run``.
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8
RUN_EXIT_DATA = 32

# The same for who looks at every exit and has no time to unpack: the page cast to 64-bit items, and where in it an
# MMIO exit has its address, its data, and its size with the direction above it. What lies behind those is stale.
RUN_MMIO_ADDRESS = 4
RUN_MMIO_DATA = 5
RUN_MMIO_KIND = 6
RUN_MMIO_KIND_MASK = 0xFF_FFFF_FFFF
MMIO_READ_32 = 4
MMIO_WRITE_32 = 1 << 32 | 4

_IO_EXIT = struct.Struct("=BBHIQ")
_MMIO_EXIT = struct.Struct("=Q8sIB")
_INTERNAL_EXIT = struct.Struct("=II")
_REGISTER_NAMES = [
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rsp",
    "rbp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "rflags",
]


class Exit(IntEnum):
    """``KVM_EXIT_*``: why :func:`run` came back. Numbers without a name are in :func:`exit_name`."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26


@dataclass(frozen=True, slots=True)
class Segment:
    """``struct kvm_segment``: base, limit in bytes, selector and the descriptor's attribute bits."""

    base: int
    limit: int
    selector: int
    kind: int
    present: int = 1
    dpl: int = 0
    default_32: int = 0
    system: int = 1
    long_mode: int = 0
    granularity: int = 0
    available: int = 0
    unusable: int = 0

    def fields(self) -> tuple[int, ...]:
        """The fields in the order of the structure."""
        flags = (self.default_32, self.system, self.long_mode, self.granularity, self.available, self.unusable)
        return (self.base, self.limit, self.selector, self.kind, self.present, self.dpl, *flags)


class MmioExit(NamedTuple):
    """An access of the guest to an address with no memory: *size* bytes, *value* as the guest wrote it."""

    address: int
    size: int
    is_write: bool
    value: int


class PortExit(NamedTuple):
    """An access of the guest to an I/O port: *size* bytes each, the first value where it is a write."""

    port: int
    size: int
    is_write: bool
    value: int


def exit_name(reason: int) -> str:
    """``KVM_EXIT_MMIO`` and so on, for messages."""
    return f"KVM_EXIT_{Exit(reason).name}" if reason in Exit.__members__.values() else f"KVM_EXIT number {reason}"


def run(vcpu_fd: int) -> bool:
    """Run the vCPU until it needs userspace (True: the page says why) or a signal or immediate_exit came (False).

    :raise KernelError: the kernel refused; EFAULT for memory that is gone, EIO from another process.
    """
    try:
        fcntl.ioctl(vcpu_fd, KVM_RUN)
    except InterruptedError:
        return False
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        raise KernelError("KVM_RUN", "vCPU", error.errno or 0) from error
    return True


def decode_mmio(page: memoryview) -> MmioExit:
    """The MMIO exit in the shared page."""
    address, data, size, is_write = _MMIO_EXIT.unpack_from(page, RUN_EXIT_DATA)
    return MmioExit(address, size, bool(is_write), int.from_bytes(data[: min(size, 8)], "little"))


def decode_port(page: memoryview) -> PortExit:
    """The port I/O exit in the shared page (the first item of a string instruction)."""
    direction, size, port, _, offset = _IO_EXIT.unpack_from(page, RUN_EXIT_DATA)
    value = int.from_bytes(page[offset : offset + size], "little")
    return PortExit(port, size, bool(direction), value)


def decode_eoi_vector(page: memoryview) -> int:
    """The vector of a ``KVM_EXIT_IOAPIC_EOI``."""
    return int(page[RUN_EXIT_DATA])


def decode_internal_error(page: memoryview) -> tuple[int, tuple[int, ...]]:
    """The suberror of a ``KVM_EXIT_INTERNAL_ERROR`` and up to 16 words of data."""
    suberror, count = _INTERNAL_EXIT.unpack_from(page, RUN_EXIT_DATA)
    return suberror, struct.unpack_from(f"={min(count, 16)}Q", page, RUN_EXIT_DATA + 8)


def get_registers(vcpu_fd: int) -> dict[str, int]:
    """The general registers by name. Not while the vCPU runs: the call would wait for it."""
    buffer = bytearray(REGS.size)
    call_buffer("KVM_GET_REGS", "vCPU", vcpu_fd, KVM_GET_REGS, buffer)
    return dict(zip(_REGISTER_NAMES, REGS.unpack(buffer), strict=True))


def set_registers(vcpu_fd: int, **registers: int) -> None:
    """Set the general registers; those not named become 0."""
    buffer = bytearray(REGS.pack(*(registers.get(name, 0) for name in _REGISTER_NAMES)))
    call_buffer("KVM_SET_REGS", "vCPU", vcpu_fd, KVM_SET_REGS, buffer)


def set_unreal_mode(vcpu_fd: int) -> None:
    """Real mode with code at base 0 and data segments of 4 GiB, so that 16-bit code reaches the APICs.

    The granularity bit matters: without it the limit is cut to 1 MiB and an access to an APIC faults. The state is
    what a PC's reset leaves (KVM's own), with the segments changed.
    """
    buffer = bytearray(SREGS.size)
    call_buffer("KVM_GET_SREGS", "vCPU", vcpu_fd, KVM_GET_SREGS, buffer)
    code = Segment(0, 0xFFFF, 0, kind=0xB)
    data = Segment(0, 0xFFFF_FFFF, 0, kind=0x3, granularity=1)
    stack = Segment(0, 0xFFFF, 0, kind=0x3)
    for place, segment in enumerate((code, data, data, data, data, stack)):
        SEGMENT.pack_into(buffer, place * SEGMENT.size, *segment.fields())
    call_buffer("KVM_SET_SREGS", "vCPU", vcpu_fd, KVM_SET_SREGS, buffer)


def set_signal_mask(vcpu_fd: int, blocked: int) -> None:
    """The signals blocked while the guest runs, bit n - 1 for signal n: one that is not ends :func:`run`.

    A signal that the thread itself blocks and this set does not, ends the run without any handler being called.
    """
    buffer = bytearray(SIGNAL_MASK.pack(8, blocked))
    call_buffer("KVM_SET_SIGNAL_MASK", "vCPU", vcpu_fd, KVM_SET_SIGNAL_MASK, buffer)
