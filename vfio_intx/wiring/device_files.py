"""A device taken from vfio-pci by this process itself: container, group, device, registers. No QEMU is involved.

What is left out on purpose: no memory is mapped for the device's DMA and bus mastering stays as VFIO leaves it (off),
so a card opened here can interrupt and be read and written, and reaches nothing else.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import ExitStack
from dataclasses import dataclass

from vfio_intx.abi import vfio
from vfio_intx.abi.pciconf import PCI_COMMAND, PCI_COMMAND_MEMORY
from vfio_intx.errors import BusyError, KernelError, MissingError, RefusedError
from vfio_intx.host.holders import group_holders
from vfio_intx.host.iommu import SWITCH_ON, blockers, is_vfio_driver
from vfio_intx.host.pci import NO_GROUP, PciFunction, read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf, IommuGroup


@dataclass(slots=True)
class OpenDevice:
    """A function in our hands. Closing the device file disables its INTx and gives the group back.

    :ivar function: its facts as they were just after it was opened.
    :ivar device: the calls on it.
    """

    function: PciFunction
    group: IommuGroup
    device: vfio.DeviceFile
    _stack: ExitStack

    def close(self) -> None:
        """Close device, group and container. Harmless when done twice."""
        self._stack.close()

    def __enter__(self) -> OpenDevice:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def enable_memory(self) -> None:
        """Let the function answer in its memory BARs (Command bit 1), without which reading them is a bus error."""
        region = self.device.region_info(vfio.VFIO_PCI_CONFIG_REGION_INDEX)
        command = int.from_bytes(self.device.read(region, PCI_COMMAND, 2), "little")
        if not command & PCI_COMMAND_MEMORY:
            self.device.write(region, PCI_COMMAND, (command | PCI_COMMAND_MEMORY).to_bytes(2, "little"))

    def map_bar(self, index: int) -> mmap.mmap:
        """The BAR in this process's memory, the caller's to close before the device.

        :raise MissingError: the function has no such BAR, or one that cannot be mapped (I/O ports, below a page).
        :raise KernelError: the mapping failed.
        """
        region = self.device.region_info(index)
        if not region.size or not region.flags & vfio.RegionFlag.MMAP:
            raise MissingError(f"BAR {index} of {self.device.name} cannot be mapped")
        try:
            return mmap.mmap(self.device.fd, region.size, offset=region.offset)
        except OSError as error:
            raise KernelError("mmap", f"BAR {index} of {self.device.name}", error.errno or 0) from error


def open_device(root: HostRoot, bdf: Bdf) -> OpenDevice:
    """Take a function that is bound to vfio-pci and that nobody else uses.

    :raise MissingError: no such function, no IOMMU, no VFIO.
    :raise RefusedError: it is not on vfio-pci, or another function of its group is in use by a host driver.
    :raise BusyError: its group is open elsewhere, by a QEMU most likely.
    :raise KernelError: anything else. Nothing is left open.
    """
    function = read_function(root, bdf)
    group = _group_of(function, bdf)
    assert function is not None
    with ExitStack() as stack:
        container = _open(root, stack, "vfio")
        if vfio.api_version(container) != vfio.VFIO_API_VERSION:
            raise MissingError("this kernel's VFIO speaks an unknown version of its interface")
        group_fd = _open_group(root, stack, group)
        _join(root, container, group_fd, function, group)
        device_fd = _device_fd(group_fd, bdf)
        stack.callback(os.close, device_fd)
        # Read again: opening it enabled the function, and only then is its IRQ known (pci_enable_device()).
        function = read_function(root, bdf) or function
        return OpenDevice(function, group, vfio.DeviceFile(device_fd, str(bdf)), stack.pop_all())


def _group_of(function: PciFunction | None, bdf: Bdf) -> IommuGroup:
    if function is None:
        raise MissingError(f"there is no PCI function {bdf}", hint="lspci -D lists them")
    driver = function.driver.get("")
    if not is_vfio_driver(driver):
        now = f"bound to {driver}" if driver else "bound to no driver"
        raise RefusedError(f"{bdf} is {now}, not to vfio-pci", hint=f"vfio-intx bind {bdf}")
    group = function.group.value
    if group is None or group == NO_GROUP:
        raise MissingError(f"{bdf} is in no IOMMU group: this host has no IOMMU in use", hint=SWITCH_ON)
    return group


def _open(root: HostRoot, stack: ExitStack, name: str) -> int:
    path = root.at("dev/vfio", name)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingError(f"/dev/vfio/{name} does not exist", hint="load the driver: modprobe vfio-pci") from error
    except OSError as error:
        hint = "run as root, or give your user the node" if error.errno in (errno.EACCES, errno.EPERM) else None
        raise KernelError("open", f"/dev/vfio/{name}", error.errno or 0, hint=hint) from error
    stack.callback(os.close, fd)
    return fd


def _open_group(root: HostRoot, stack: ExitStack, group: IommuGroup) -> int:
    if root.at("dev/vfio", f"noiommu-{group}").exists():
        raise RefusedError(f"IOMMU group {group} is a stand-in of VFIO's no-IOMMU mode", hint=SWITCH_ON)
    try:
        return _open(root, stack, str(group))
    except KernelError as error:
        if error.errno != errno.EBUSY:
            raise
        holders = ", ".join(str(holder) for holder in group_holders(root, group)) or "another process"
        raise BusyError(
            f"IOMMU group {group} is in use by {holders}", hint="take the device from that VM first (vfio-intx detach)"
        ) from error


def _join(root: HostRoot, container: int, group_fd: int, function: PciFunction, group: IommuGroup) -> None:
    name = f"IOMMU group {group}"
    if not vfio.group_status(group_fd, name) & vfio.GroupFlag.VIABLE:
        raise RefusedError(f"{name} is not viable: {_others(root, function)}", hint="vfio-intx bind them as well")
    vfio.set_container(group_fd, container, name)
    kind = vfio.VFIO_TYPE1v2_IOMMU
    if not vfio.has_extension(container, kind):
        raise MissingError("this VFIO has no type 1 IOMMU", hint="load it: modprobe vfio_iommu_type1")
    try:
        vfio.set_iommu(container, kind)
    except KernelError as error:
        if error.errno == errno.EPERM:
            # vfio_iommu_type1_attach_group(): no interrupt remapping, and allow_unsafe_interrupts is off.
            error.hint = "the IOMMU does not remap interrupts; see allow_unsafe_interrupts of vfio_iommu_type1"
        raise


def _others(root: HostRoot, function: PciFunction) -> str:
    snapshot = take_snapshot(root)
    group = snapshot.group_of(function)
    found = blockers(group, snapshot.functions) if group else ()
    return ", ".join(f"{other.bdf} is on {other.driver.get('')}" for other in found) or "a function is on a host driver"


def _device_fd(group_fd: int, bdf: Bdf) -> int:
    try:
        return vfio.get_device_fd(group_fd, str(bdf))
    except KernelError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(f"{bdf} is open elsewhere", hint="see who holds /dev/vfio: fuser -v /dev/vfio/*") from error
        if error.errno == errno.ENODEV:
            raise RefusedError(f"{bdf} is no longer on vfio-pci", hint=f"vfio-intx bind {bdf}") from error
        raise
