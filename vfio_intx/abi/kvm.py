"""KVM's system and VM ioctls, as far as a VM of one vCPU with interrupt lines needs them (x86).

Encoders and decoders are pure; the calls below them are thin and take plain descriptors. The vCPU's half is in
:mod:`vfio_intx.abi.kvm_vcpu`. Sources: ``include/uapi/linux/kvm.h``, ``arch/x86/include/uapi/asm/kvm.h``; what the
calls answer is in ``virt/kvm/eventfd.c`` and ``arch/x86/kvm/irq.c``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from vfio_intx.abi.call import _IO, _IOR, _IOW, _IOWR, call_buffer, call_value
from vfio_intx.errors import BusyError, KernelError, MissingError

KVMIO = 0xAE
API_VERSION = 12

IRQ_LEVEL = struct.Struct("=II")
IRQCHIP = struct.Struct("=II512s")
IRQFD = struct.Struct("=IIII16x")
MEMORY_REGION = struct.Struct("=IIQQQ")
ROUTING_HEAD = struct.Struct("=II")
ROUTING_ENTRY = struct.Struct("=IIIIIIII16x")
MSI = struct.Struct("=IIIII12x")
ENABLE_CAP = struct.Struct("=IIQQQQ64x")
IOAPIC_STATE = struct.Struct("=QIIII24Q")
PIC_STATE = struct.Struct("=16B")

KVM_GET_API_VERSION = _IO(KVMIO, 0x00)
KVM_CREATE_VM = _IO(KVMIO, 0x01)
KVM_CHECK_EXTENSION = _IO(KVMIO, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _IO(KVMIO, 0x04)
KVM_CREATE_VCPU = _IO(KVMIO, 0x41)
KVM_SET_USER_MEMORY_REGION = _IOW(KVMIO, 0x46, MEMORY_REGION.size)
KVM_SET_TSS_ADDR = _IO(KVMIO, 0x47)
KVM_CREATE_IRQCHIP = _IO(KVMIO, 0x60)
KVM_IRQ_LINE = _IOW(KVMIO, 0x61, IRQ_LEVEL.size)
KVM_GET_IRQCHIP = _IOWR(KVMIO, 0x62, IRQCHIP.size)
KVM_SET_IRQCHIP = _IOR(KVMIO, 0x63, IRQCHIP.size)
KVM_SET_GSI_ROUTING = _IOW(KVMIO, 0x6A, ROUTING_HEAD.size)
KVM_IRQFD = _IOW(KVMIO, 0x76, IRQFD.size)
KVM_ENABLE_CAP = _IOW(KVMIO, 0xA3, ENABLE_CAP.size)
KVM_SIGNAL_MSI = _IOW(KVMIO, 0xA5, MSI.size)

KVM_IRQFD_FLAG_DEASSIGN = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE = 1 << 1
KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2
MSI_ADDRESS = 0xFEE0_0000
MSI_DATA_LEVEL = 1 << 15
IOAPIC_PINS = 24
_NO_FD = 0xFFFF_FFFF


class Cap(IntEnum):
    """Capabilities, the numbers of ``KVM_CAP_*``."""

    IRQCHIP = 0
    IRQ_ROUTING = 25
    IRQFD = 32
    SIGNAL_MSI = 77
    IRQFD_RESAMPLE = 82
    SPLIT_IRQCHIP = 121
    IMMEDIATE_EXIT = 136


class Chip(IntEnum):
    """``KVM_IRQCHIP_*``: the in-kernel controllers of a full irqchip."""

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


@dataclass(frozen=True, slots=True)
class PinRoute:
    """GSI *gsi* drives pin *pin* of *chip* (``KVM_IRQ_ROUTING_IRQCHIP``)."""

    gsi: int
    chip: Chip
    pin: int


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """GSI *gsi* sends an MSI to LAPIC *destination* (``KVM_IRQ_ROUTING_MSI``).

    :ivar level: with the level bit set, the EOI of the vector leaves the kernel as ``KVM_EXIT_IOAPIC_EOI``.
    """

    gsi: int
    vector: int
    level: bool = False
    destination: int = 0


@dataclass(frozen=True, slots=True)
class IoapicState:
    """The in-kernel IOAPIC: per pin the redirection entry (64 bits) and, in ``irr``, the latched requests."""

    irr: int
    redirections: tuple[int, ...]

    def is_requested(self, pin: int) -> bool:
        """Whether the pin's request is latched; for a level pin that is: the line is up."""
        return bool(self.irr >> pin & 1)

    def is_remote_irr(self, pin: int) -> bool:
        """Whether the vector was delivered and its EOI has not come back (bit 14)."""
        return bool(self.redirections[pin] >> 14 & 1)


@dataclass(frozen=True, slots=True)
class PicState:
    """One 8259A: request, mask, in-service and level (``elcr``) registers, 8 bits each."""

    irr: int
    imr: int
    isr: int
    elcr: int


def encode_irqfd(fd: int, gsi: int, flags: int, resample_fd: int | None) -> bytearray:
    """``struct kvm_irqfd``."""
    return bytearray(IRQFD.pack(fd & 0xFFFF_FFFF, gsi, flags, _NO_FD if resample_fd is None else resample_fd))


def encode_routing(routes: Iterable[PinRoute | MsiRoute]) -> bytearray:
    """``struct kvm_irq_routing`` with its entries, in the order given."""
    entries = [_encode_route(route) for route in routes]
    return bytearray(ROUTING_HEAD.pack(len(entries), 0) + b"".join(entries))


def _encode_route(route: PinRoute | MsiRoute) -> bytes:
    if isinstance(route, PinRoute):
        return ROUTING_ENTRY.pack(route.gsi, KVM_IRQ_ROUTING_IRQCHIP, 0, 0, route.chip, route.pin, 0, 0)
    data = route.vector | (MSI_DATA_LEVEL if route.level else 0)
    address = MSI_ADDRESS | route.destination << 12
    return ROUTING_ENTRY.pack(route.gsi, KVM_IRQ_ROUTING_MSI, 0, 0, address, 0, data, 0)


def decode_ioapic(chip: bytes | bytearray) -> IoapicState:
    """The IOAPIC out of a filled ``struct kvm_irqchip``."""
    _, _, _, irr, _, *redirections = IOAPIC_STATE.unpack_from(chip, 8)
    return IoapicState(irr, tuple(redirections))


def decode_pic(chip: bytes | bytearray) -> PicState:
    """One PIC out of a filled ``struct kvm_irqchip``."""
    state = PIC_STATE.unpack_from(chip, 8)
    return PicState(irr=state[1], imr=state[2], isr=state[3], elcr=state[14])


def open_kvm(path: str | os.PathLike[str]) -> int:
    """``/dev/kvm``, close-on-exec. The caller closes it.

    :raise MissingError: there is no such node, or no KVM behind it.
    :raise KernelError: not permitted.
    :raise BusyError: another hypervisor holds the CPU's virtualisation.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"{path} does not exist", hint="load kvm_intel or kvm_amd (modprobe)") from error
    except PermissionError as error:
        hint = "run as root, or as a member of the group that owns it (usually kvm)"
        raise KernelError("open", str(path), error.errno or 0, hint=hint) from error
    except OSError as error:
        raise unopened(path, error) from error
    try:
        version = call_value("KVM_GET_API_VERSION", str(path), fd, KVM_GET_API_VERSION)
    except KernelError:
        version = -1
    if version != API_VERSION:
        os.close(fd)
        said = "is not KVM" if version < 0 else f"speaks KVM API version {version}, not {API_VERSION}"
        raise MissingError(f"{path} {said}", hint="look at what the node is: ls -l /dev/kvm; grep kvm /proc/misc")
    return fd


def unopened(path: str | os.PathLike[str], error: OSError) -> MissingError | BusyError | KernelError:
    """The error of ours for what ``open`` of the KVM node raised. Pure."""
    number = error.errno or 0
    if number in (errno.ENODEV, errno.ENXIO):
        return MissingError(f"{path} has no driver behind it", hint="load kvm_intel or kvm_amd (modprobe)")
    if number == errno.EBUSY:
        return BusyError(f"{path} is busy", hint="another hypervisor holds the CPU; stop it and try again")
    return KernelError("open", str(path), number)


def check_extension(fd: int, cap: int) -> int:
    """What *cap* answers on the system or VM descriptor *fd*; 0 is "no". :raise KernelError: see errno."""
    return call_value("KVM_CHECK_EXTENSION", "KVM", fd, KVM_CHECK_EXTENSION, cap)


def create_vm(kvm_fd: int) -> int:
    """A new VM's descriptor. :raise BusyError: EBUSY, another hypervisor. :raise KernelError: otherwise."""
    try:
        return call_value("KVM_CREATE_VM", "/dev/kvm", kvm_fd, KVM_CREATE_VM)
    except KernelError as error:
        if error.errno == errno.EBUSY:
            hint = "another hypervisor holds the CPU's virtualisation; stop it and try again"
            raise BusyError("KVM_CREATE_VM: /dev/kvm is busy", hint=hint) from error
        raise


def set_tss_address(vm_fd: int, address: int) -> None:
    """Three pages of guest-physical space that Intel hosts need. An unsigned long: it lies above 2**31."""
    call_value("KVM_SET_TSS_ADDR", "VM", vm_fd, KVM_SET_TSS_ADDR, address)


def create_irqchip(vm_fd: int) -> None:
    """IOAPIC, both PICs and a LAPIC per vCPU, in the kernel. :raise KernelError: ENOTTY without CONFIG_KVM_IOAPIC."""
    call_value("KVM_CREATE_IRQCHIP", "VM", vm_fd, KVM_CREATE_IRQCHIP)


def create_split_irqchip(vm_fd: int, pins: int = IOAPIC_PINS) -> None:
    """Only the LAPICs in the kernel; *pins* GSIs are kept for the IOAPIC of userspace."""
    enable = bytearray(ENABLE_CAP.pack(Cap.SPLIT_IRQCHIP, 0, pins, 0, 0, 0))
    call_buffer("KVM_ENABLE_CAP(SPLIT_IRQCHIP)", "VM", vm_fd, KVM_ENABLE_CAP, enable)


def set_memory(vm_fd: int, slot: int, guest_address: int, size: int, host_address: int) -> None:
    """Map *size* bytes at *host_address* of this process into the guest; size 0 takes the slot away."""
    region = bytearray(MEMORY_REGION.pack(slot, 0, guest_address, size, host_address))
    call_buffer("KVM_SET_USER_MEMORY_REGION", f"memory slot {slot}", vm_fd, KVM_SET_USER_MEMORY_REGION, region)


def set_routing(vm_fd: int, routes: Iterable[PinRoute | MsiRoute]) -> None:
    """Replace the whole GSI routing table. Any GSI may be left without a route: its events then vanish silently."""
    call_buffer("KVM_SET_GSI_ROUTING", "VM", vm_fd, KVM_SET_GSI_ROUTING, encode_routing(routes))


def encode_line(gsi: int, level: int) -> bytearray:
    """``struct kvm_irq_level``, to be made once and used often by :func:`set_line`."""
    return bytearray(IRQ_LEVEL.pack(gsi, level))


def set_line(vm_fd: int, line: bytearray) -> None:
    """Raise or lower a GSI's line as the userspace source (source id 0); *line* is from :func:`encode_line`."""
    try:
        fcntl.ioctl(vm_fd, KVM_IRQ_LINE, line, True)
    except OSError as error:
        raise KernelError("KVM_IRQ_LINE", "VM", error.errno or 0) from error


def assign_irqfd(vm_fd: int, trigger: int, gsi: int, resample: int | None = None, *, flags: int = 0) -> None:
    """Bind an eventfd to a GSI; with *resample* the level stays up until the EOI, which signals that eventfd.

    Success proves little: any GSI is accepted, and with it the events may vanish.

    :raise KernelError: EBUSY bound already, EINVAL no eventfd or (resample) no full irqchip, EBADF.
    """
    flags |= KVM_IRQFD_FLAG_RESAMPLE if resample is not None else 0
    call_buffer("KVM_IRQFD", f"GSI {gsi}", vm_fd, KVM_IRQFD, encode_irqfd(trigger, gsi, flags, resample))


def deassign_irqfd(vm_fd: int, trigger: int, gsi: int) -> None:
    """Take the binding away; no interrupt of it arrives afterwards, and a level that it held is dropped.

    Never assigned, or another GSI: success all the same (0). :raise KernelError: EBADF, EINVAL (no eventfd).
    """
    request = encode_irqfd(trigger, gsi, KVM_IRQFD_FLAG_DEASSIGN, None)
    call_buffer("KVM_IRQFD(DEASSIGN)", f"GSI {gsi}", vm_fd, KVM_IRQFD, request)


def signal_msi(vm_fd: int, vector: int) -> bool:
    """Send an edge MSI to LAPIC 0; whether the guest could take it."""
    message = bytearray(MSI.pack(MSI_ADDRESS, 0, vector, 0, 0))
    return call_buffer("KVM_SIGNAL_MSI", "VM", vm_fd, KVM_SIGNAL_MSI, message) > 0


def get_irqchip(vm_fd: int, chip: Chip) -> bytearray:
    """A filled ``struct kvm_irqchip``, for :func:`decode_ioapic` or :func:`decode_pic`."""
    buffer = bytearray(IRQCHIP.pack(chip, 0, b""))
    call_buffer("KVM_GET_IRQCHIP", chip.name, vm_fd, KVM_GET_IRQCHIP, buffer)
    return buffer


def create_vcpu(vm_fd: int, number: int = 0) -> int:
    """A vCPU's descriptor."""
    return call_value("KVM_CREATE_VCPU", f"vCPU {number}", vm_fd, KVM_CREATE_VCPU, number)


def run_page_size(kvm_fd: int) -> int:
    """Bytes to map from a vCPU's descriptor."""
    return call_value("KVM_GET_VCPU_MMAP_SIZE", "/dev/kvm", kvm_fd, KVM_GET_VCPU_MMAP_SIZE)


def address_of(memory: mmap.mmap) -> int:
    """Where a writable mapping lies in this process, for :func:`set_memory`; valid until it is closed."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
