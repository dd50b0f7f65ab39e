"""Reopen a masked line from outside: borrow QEMU's vfio descriptor and ask the kernel to unmask.

This works on an unmodified QEMU because vfio's ioctls do not ask whose descriptor it is (``vfio_device_fops_unl_ioctl``
has no check of the process). An unmask that was not needed does nothing: the kernel looks whether the line is masked,
and if the device still asserts, it signals the trigger again instead (``vfio_pci_intx_unmask_handler`` in
drivers/vfio/pci/vfio_pci_intrs.c). The borrowed descriptor is closed at once.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from vfio_intx.abi.pciconf import PCI_COMMAND, PCI_COMMAND_INTX_DISABLE
from vfio_intx.abi.pidfd import borrow, open_process
from vfio_intx.abi.vfio import UNMASK, VFIO_PCI_CONFIG_REGION_INDEX, Device, DeviceFile
from vfio_intx.errors import KernelError, MissingError, RefusedError
from vfio_intx.host.pci import PciFunction, read_function
from vfio_intx.host.root import HostRoot, read_text
from vfio_intx.names import Bdf
from vfio_intx.qemu.process import QemuProcess, find_processes, holders_among, is_same
from vfio_intx.wiring.verify import read_host_line

_SYSPATH = "vfio-device-syspath:"


@dataclass(frozen=True, slots=True)
class Moment:
    """The device's side of a line at one moment; None where it could not be read.

    :ivar masked: DisINTx in the card's own Command register. A card that cannot mask itself is masked at the host's
        interrupt controller instead, which is not seen here.
    :ivar asserting: Interrupt Status.
    :ivar interrupts: the host's count of the line.
    """

    masked: bool | None
    asserting: bool | None
    interrupts: int | None


@dataclass(frozen=True, slots=True)
class Kicked:
    """What was found and done.

    :ivar guest_masks: the guest itself has set DisINTx, so the kernel ignores an unmask until it clears that. Where
        there are several candidates: in all of them.
    :ivar candidates: how many of QEMU's devices could be the one: all equal ones that have a line were unmasked, which
        harms none.
    """

    bdf: Bdf
    pid: int
    guest_masks: bool
    candidates: int
    before: Moment
    after: Moment

    @property
    def outcome(self) -> str:
        """What came of it, in words."""
        if self.guest_masks:
            return "the guest's driver has masked the line itself (DisINTx): nothing can unmask it but that driver"
        if self.before.masked and self.after.masked and self.after.asserting:
            return "the card still asserts: the kernel told the guest once more and keeps the line masked"
        if self.before.masked and self.after.masked is False:
            return "the line was masked and is open again"
        if self.before.masked is False:
            return "the line was open already; nothing changed"
        return "the kernel took the unmask; whether the line was masked could not be seen"

    def as_json(self) -> dict[str, object]:
        """For programs: ``vfio-intx/kick/1``."""
        moments = {
            name: {"masked": one.masked, "asserting": one.asserting, "host_interrupts": one.interrupts}
            for name, one in (("before", self.before), ("after", self.after))
        }
        return {
            "device": str(self.bdf),
            "pid": self.pid,
            "guest_masks": self.guest_masks,
            "candidates": self.candidates,
            "outcome": self.outcome,
            **moments,
        }


def find_owner(root: HostRoot, bdf: Bdf) -> tuple[QemuProcess, PciFunction]:
    """The QEMU that has *bdf* open, and the function.

    :raise MissingError: no such function, or no QEMU has it open.
    :raise RefusedError: the descriptors of the processes cannot be seen.
    """
    function = read_function(root, bdf)
    if function is None:
        raise MissingError(f"there is no PCI function {bdf}", hint="lspci -D lists them")
    processes = find_processes(root)
    for process in holders_among(root, processes, function):
        return process, function
    if any(process.descriptors.value is None for process in processes):
        raise RefusedError(f"who has {bdf} open cannot be seen", hint="run it as root")
    raise MissingError(f"no running QEMU has {bdf} open", hint="`vfio-intx status` lists the lines there are")


def kick(root: HostRoot, bdf: Bdf, *, dry_run: bool = False) -> Kicked:
    """Unmask the INTx of *bdf* in whichever QEMU has it.

    :param dry_run: look, and do not unmask.
    :raise MissingError: nobody has it open, or it has no INTx. :raise RefusedError: it is not in INTx mode.
    :raise KernelError: EPERM without the rights to borrow descriptors.
    """
    process, function = find_owner(root, bdf)
    before = _moment(root, bdf)
    masks: list[bool] = []
    refused: list[MissingError | RefusedError] = []
    with open_process(process.pid) as pidfd:
        if not is_same(root, process):
            raise MissingError(f"VM {process.label} ended just now")
        descriptors = process.descriptors.value
        for fd in descriptors.vfio_devices if descriptors is not None else ():
            if names_another(root, process.pid, fd, bdf):
                continue
            with borrow(pidfd, fd, f"VM {process.label}") as copy:
                device = DeviceFile(copy, str(bdf))
                if not is_that(device, function):
                    continue
                try:
                    masks.append(unmask(device, dry_run=dry_run))
                except (MissingError, RefusedError) as error:
                    refused.append(error)  # a twin's, perhaps: the one that is meant may come later
    if masks:
        return Kicked(bdf, process.pid, all(masks), len(masks) + len(refused), before, _moment(root, bdf))
    raise refused[0] if refused else MissingError(f"none of the vfio descriptors of VM {process.label} is {bdf}")


def _moment(root: HostRoot, bdf: Bdf) -> Moment:
    function, line = read_function(root, bdf), read_host_line(root, bdf)
    config = None if function is None or function.is_dead else function.config.value
    return Moment(
        masked=None if config is None else config.intx_disabled,
        asserting=None if config is None else config.intx_asserted,
        interrupts=None if line is None else line.count,
    )


def names_another(root: HostRoot, pid: int, fd: int, bdf: Bdf) -> bool:
    """Whether the kernel says (6.13 and later do) that a descriptor is another device."""
    text = read_text(root.at("proc", str(pid), "fdinfo", str(fd)), root=root).get("")
    paths = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(_SYSPATH)]
    return bool(paths) and not paths[0].endswith(f"/{bdf}")


def is_that(device: Device, function: PciFunction) -> bool:
    """Whether a descriptor of a QEMU can be *function*'s, by its ids: two equal cards cannot be told apart so."""
    region = device.region_info(VFIO_PCI_CONFIG_REGION_INDEX)
    vendor, product = (int.from_bytes(device.read(region, at, 2), "little") for at in (0, 2))
    ids = function.ids.value
    return ids is None or (vendor, product) == (ids.vendor, ids.device)


def unmask(device: Device, *, dry_run: bool) -> bool:
    """Ask the kernel to unmask; whether the guest's own DisINTx is set, in which case the kernel ignores it.

    :raise MissingError: the device has no INTx. :raise RefusedError: it is not in INTx mode.
    """
    if device.irq_info().count == 0:
        raise MissingError(f"{device.name} has no INTx in vfio", hint=f"vfio-intx scan {device.name} says why")
    region = device.region_info(VFIO_PCI_CONFIG_REGION_INDEX)
    command = int.from_bytes(device.read(region, PCI_COMMAND, 2), "little")
    if not dry_run:
        try:
            device.set_irqs(UNMASK)
        except KernelError as error:
            if error.errno == errno.EINVAL:
                raise RefusedError(
                    f"{device.name} is not in INTx mode: the guest uses MSI, or has not enabled interrupts",
                    hint="there is no line to reopen",
                ) from error
            raise
    return bool(command & PCI_COMMAND_INTX_DISABLE)
