"""VFIO's side of the kernel: containers, groups, devices and the one INTx interrupt of a PCI function.

Numbers and layouts are those of ``include/uapi/linux/vfio.h``; all of VFIO's ioctls are plain ``_IO()``, because every
structure opens with its own size (``argsz``). Encoding and decoding are pure; a call is a few lines on top.

What ``VFIO_DEVICE_SET_IRQS`` does to INTx (``drivers/vfio/pci/vfio_pci_intrs.c``), by the names used here:

=====================  ================================================================================
``trigger``            from "none": enables INTx. While on: swaps the eventfd, mask state kept. -1 while on
                       leaves a handler that masks the line and tells nobody: not offered here
``loopback``           signals the trigger eventfd by software. Does not mask and asserts nothing
``mask``, ``unmask``   now; unmasking a line whose device still asserts signals the trigger again instead
``unmask_eventfd``     a write to that eventfd unmasks, in the kernel. EBUSY while another one is attached
``unmask_detach``      takes it away. Closing the eventfd does so only once the last duplicate is gone
``disable``            drops both eventfds and frees the host IRQ. EINVAL if INTx is not on
=====================  ================================================================================
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Protocol

from vfio_intx.abi.call import _IO, call_buffer, call_value
from vfio_intx.errors import KernelError

_TYPE = ord(";")
_BASE = 100

VFIO_GET_API_VERSION: Final = _IO(_TYPE, _BASE + 0)
VFIO_CHECK_EXTENSION: Final = _IO(_TYPE, _BASE + 1)
VFIO_SET_IOMMU: Final = _IO(_TYPE, _BASE + 2)
VFIO_GROUP_GET_STATUS: Final = _IO(_TYPE, _BASE + 3)
VFIO_GROUP_SET_CONTAINER: Final = _IO(_TYPE, _BASE + 4)
VFIO_GROUP_UNSET_CONTAINER: Final = _IO(_TYPE, _BASE + 5)
VFIO_GROUP_GET_DEVICE_FD: Final = _IO(_TYPE, _BASE + 6)
VFIO_DEVICE_GET_INFO: Final = _IO(_TYPE, _BASE + 7)
VFIO_DEVICE_GET_REGION_INFO: Final = _IO(_TYPE, _BASE + 8)
VFIO_DEVICE_GET_IRQ_INFO: Final = _IO(_TYPE, _BASE + 9)
VFIO_DEVICE_SET_IRQS: Final = _IO(_TYPE, _BASE + 10)
VFIO_DEVICE_RESET: Final = _IO(_TYPE, _BASE + 11)

VFIO_API_VERSION: Final = 0
VFIO_TYPE1_IOMMU: Final = 1
VFIO_TYPE1v2_IOMMU: Final = 3

VFIO_PCI_CONFIG_REGION_INDEX: Final = 7
VFIO_PCI_INTX_IRQ_INDEX: Final = 0
VFIO_PCI_MSI_IRQ_INDEX: Final = 1
VFIO_PCI_MSIX_IRQ_INDEX: Final = 2
VFIO_PCI_NUM_IRQS: Final = 5


class GroupFlag(IntFlag):
    """``VFIO_GROUP_FLAGS_*``."""

    VIABLE = 1 << 0
    CONTAINER_SET = 1 << 1


class DeviceFlag(IntFlag):
    """``VFIO_DEVICE_FLAGS_*``, those a PCI device can show."""

    RESET = 1 << 0
    PCI = 1 << 1
    CAPS = 1 << 7


class RegionFlag(IntFlag):
    """``VFIO_REGION_INFO_FLAG_*``."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class IrqFlag(IntFlag):
    """``VFIO_IRQ_INFO_*``. Constant for INTx: they do not tell whether the device can mask itself (DisINTx)."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


class IrqSet(IntFlag):
    """``VFIO_IRQ_SET_*``: exactly one DATA and one ACTION make a request."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


DATA_TYPES: Final = IrqSet.DATA_NONE | IrqSet.DATA_BOOL | IrqSet.DATA_EVENTFD
ACTION_TYPES: Final = IrqSet.ACTION_MASK | IrqSet.ACTION_UNMASK | IrqSet.ACTION_TRIGGER

_GROUP_STATUS = struct.Struct("=II")  # vfio_group_status: argsz, flags
_DEVICE_INFO = struct.Struct("=IIIIII")  # vfio_device_info: argsz, flags, num_regions, num_irqs, cap_offset, pad
_REGION_INFO = struct.Struct("=IIIIQQ")  # vfio_region_info: argsz, flags, index, cap_offset, size, offset
_IRQ_INFO = struct.Struct("=IIII")  # vfio_irq_info: argsz, flags, index, count
_IRQ_SET = struct.Struct("=IIIII")  # vfio_irq_set: argsz, flags, index, start, count, then data
_S32 = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device fd stands for."""

    flags: DeviceFlag
    regions: int
    irqs: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """One region (BAR 0-5, ROM 6, configuration space 7): ``offset`` is where it lies in the device fd."""

    index: int
    flags: RegionFlag
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """One interrupt index. A ``count`` of 0 at the INTx index means that the function has no pin VFIO would use."""

    index: int
    flags: IrqFlag
    count: int


@dataclass(frozen=True, slots=True)
class IrqRequest:
    """One ``VFIO_DEVICE_SET_IRQS``: ``name`` is how errors and journals call it, ``encoded`` a ``vfio_irq_set``."""

    name: str
    encoded: bytes


@dataclass(frozen=True, slots=True)
class DecodedIrqSet:
    """A ``vfio_irq_set`` taken apart; nothing is checked, that is the kernel's part (and the fake's)."""

    argsz: int
    flags: int
    index: int
    start: int
    count: int
    data: bytes


def encode_irq_set(name: str, flags: IrqSet, data: bytes = b"", *, count: int = 1) -> IrqRequest:
    """A request for the one INTx interrupt (index 0, start 0)."""
    header = _IRQ_SET.pack(_IRQ_SET.size + len(data), flags, VFIO_PCI_INTX_IRQ_INDEX, 0, count)
    return IrqRequest(name, header + data)


def decode_irq_set(encoded: bytes) -> DecodedIrqSet:
    """The fields of an encoded request. :raise ValueError: if it is shorter than the fixed part."""
    if len(encoded) < _IRQ_SET.size:
        raise ValueError(f"a vfio_irq_set has at least {_IRQ_SET.size} bytes, not {len(encoded)}")
    argsz, flags, index, start, count = _IRQ_SET.unpack_from(encoded)
    return DecodedIrqSet(argsz, flags, index, start, count, encoded[_IRQ_SET.size :])


def decode_eventfd(data: bytes) -> int:
    """The descriptor that an eventfd request carries; -1 detaches. :raise ValueError: if there is none."""
    if len(data) < _S32.size:
        raise ValueError("an eventfd request carries four bytes")
    return int(_S32.unpack_from(data)[0])


def trigger(eventfd: int) -> IrqRequest:
    """Enable INTx with this trigger eventfd, or swap the eventfd of one that is on.

    :raise ValueError: for a negative number: the line would mask itself at the next interrupt with nobody told.
    """
    if eventfd < 0:
        raise ValueError("a trigger is an open eventfd; use disable() to switch INTx off")
    return encode_irq_set("trigger eventfd", IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER, _S32.pack(eventfd))


def unmask_eventfd(eventfd: int) -> IrqRequest:
    """Attach the eventfd whose signal unmasks in the kernel. :raise ValueError: for a negative number."""
    if eventfd < 0:
        raise ValueError("an unmask eventfd is an open eventfd; use UNMASK_DETACH to take one away")
    return encode_irq_set("unmask eventfd", IrqSet.DATA_EVENTFD | IrqSet.ACTION_UNMASK, _S32.pack(eventfd))


LOOPBACK: Final = encode_irq_set("loopback", IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER)
MASK: Final = encode_irq_set("mask", IrqSet.DATA_NONE | IrqSet.ACTION_MASK)
UNMASK: Final = encode_irq_set("unmask", IrqSet.DATA_NONE | IrqSet.ACTION_UNMASK)
UNMASK_DETACH: Final = encode_irq_set("unmask detach", IrqSet.DATA_EVENTFD | IrqSet.ACTION_UNMASK, _S32.pack(-1))
DISABLE: Final = encode_irq_set("disable", IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER, count=0)


class Device(Protocol):
    """A VFIO device as the rest of the program uses it: the real one below, or the tests' fake."""

    @property
    def name(self) -> str:
        """How errors call it: its PCI address, or the role of a borrowed descriptor."""

    def info(self) -> DeviceInfo:
        """``VFIO_DEVICE_GET_INFO``."""

    def region_info(self, index: int) -> RegionInfo:
        """``VFIO_DEVICE_GET_REGION_INFO``. :raise KernelError: EINVAL for an index that it does not have."""

    def irq_info(self, index: int = VFIO_PCI_INTX_IRQ_INDEX) -> IrqInfo:
        """``VFIO_DEVICE_GET_IRQ_INFO``. :raise KernelError: EINVAL for an index that it does not have."""

    def set_irqs(self, request: IrqRequest) -> None:
        """``VFIO_DEVICE_SET_IRQS``. :raise KernelError: the errno says what is unchanged; see the table above."""

    def read(self, region: RegionInfo, offset: int, length: int) -> bytes:
        """*length* bytes of a region. :raise KernelError: EIO when the kernel gave fewer."""

    def write(self, region: RegionInfo, offset: int, data: bytes) -> None:
        """Write into a region. :raise KernelError: EIO when the kernel took fewer."""


class DeviceFile:
    """A device by its descriptor, which stays the caller's to close."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self._name = name

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    def info(self) -> DeviceInfo:
        """See :meth:`Device.info`."""
        buffer = bytearray(_DEVICE_INFO.pack(_DEVICE_INFO.size, 0, 0, 0, 0, 0))
        call_buffer("VFIO_DEVICE_GET_INFO", self._name, self.fd, VFIO_DEVICE_GET_INFO, buffer)
        _, flags, regions, irqs, _, _ = _DEVICE_INFO.unpack(buffer)
        return DeviceInfo(DeviceFlag(flags), regions, irqs)

    def region_info(self, index: int) -> RegionInfo:
        """See :meth:`Device.region_info`. Capability chains are left out: nothing here needs them."""
        buffer = bytearray(_REGION_INFO.pack(_REGION_INFO.size, 0, index, 0, 0, 0))
        call_buffer("VFIO_DEVICE_GET_REGION_INFO", self._name, self.fd, VFIO_DEVICE_GET_REGION_INFO, buffer)
        _, flags, _, _, size, offset = _REGION_INFO.unpack(buffer)
        return RegionInfo(index, RegionFlag(flags), size, offset)

    def irq_info(self, index: int = VFIO_PCI_INTX_IRQ_INDEX) -> IrqInfo:
        """See :meth:`Device.irq_info`."""
        buffer = bytearray(_IRQ_INFO.pack(_IRQ_INFO.size, 0, index, 0))
        call_buffer("VFIO_DEVICE_GET_IRQ_INFO", self._name, self.fd, VFIO_DEVICE_GET_IRQ_INFO, buffer)
        _, flags, _, count = _IRQ_INFO.unpack(buffer)
        return IrqInfo(index, IrqFlag(flags), count)

    def set_irqs(self, request: IrqRequest) -> None:
        """See :meth:`Device.set_irqs`."""
        operation = f"VFIO_DEVICE_SET_IRQS ({request.name})"
        call_buffer(operation, self._name, self.fd, VFIO_DEVICE_SET_IRQS, bytearray(request.encoded))

    def read(self, region: RegionInfo, offset: int, length: int) -> bytes:
        """See :meth:`Device.read`."""
        where = f"region {region.index} of {self._name}"
        try:
            data = os.pread(self.fd, length, region.offset + offset)
        except OSError as error:
            raise KernelError("pread", where, error.errno or 0) from error
        return _whole("pread", where, data, length)

    def write(self, region: RegionInfo, offset: int, data: bytes) -> None:
        """See :meth:`Device.write`."""
        where = f"region {region.index} of {self._name}"
        try:
            written = os.pwrite(self.fd, data, region.offset + offset)
        except OSError as error:
            raise KernelError("pwrite", where, error.errno or 0) from error
        _whole("pwrite", where, data[:written], len(data))


def _whole(operation: str, where: str, data: bytes, length: int) -> bytes:
    # vfio_pci_rw() stops short where a device has gone away; half a register is not an answer.
    if len(data) != length:
        raise KernelError(operation, where, errno.EIO)
    return data


def api_version(container: int) -> int:
    """``VFIO_GET_API_VERSION``; anything but :data:`VFIO_API_VERSION` is an interface that this file does not know."""
    return call_value("VFIO_GET_API_VERSION", "VFIO container", container, VFIO_GET_API_VERSION)


def has_extension(container: int, extension: int) -> bool:
    """``VFIO_CHECK_EXTENSION``: whether the container can be given this kind of IOMMU."""
    return call_value("VFIO_CHECK_EXTENSION", "VFIO container", container, VFIO_CHECK_EXTENSION, extension) > 0


def set_iommu(container: int, kind: int) -> None:
    """``VFIO_SET_IOMMU``, once a group is in the container. :raise KernelError: EINVAL without a group."""
    call_value("VFIO_SET_IOMMU", "VFIO container", container, VFIO_SET_IOMMU, kind)


def group_status(group: int, name: str) -> GroupFlag:
    """``VFIO_GROUP_GET_STATUS``. A group is viable when each of its devices is on vfio-pci, a bridge or unbound."""
    buffer = bytearray(_GROUP_STATUS.pack(_GROUP_STATUS.size, 0))
    call_buffer("VFIO_GROUP_GET_STATUS", name, group, VFIO_GROUP_GET_STATUS, buffer)
    return GroupFlag(_GROUP_STATUS.unpack(buffer)[1])


def set_container(group: int, container: int, name: str) -> None:
    """``VFIO_GROUP_SET_CONTAINER``. :raise KernelError: EINVAL if the group has one already."""
    call_buffer("VFIO_GROUP_SET_CONTAINER", name, group, VFIO_GROUP_SET_CONTAINER, bytearray(_S32.pack(container)))


def get_device_fd(group: int, name: str) -> int:
    """``VFIO_GROUP_GET_DEVICE_FD``: a new descriptor, the caller's to close; *name* is the PCI address.

    :raise KernelError: ENODEV if the function is not in the group or not on vfio-pci.
    """
    return call_buffer(
        "VFIO_GROUP_GET_DEVICE_FD", name, group, VFIO_GROUP_GET_DEVICE_FD, bytearray(name.encode("ascii") + b"\0")
    )
