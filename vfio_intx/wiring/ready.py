"""Whether a host function can be given to a VM now: bound to vfio-pci, in a viable group, with a pin, and free."""

from __future__ import annotations

import os

from vfio_intx.errors import BusyError, MissingError, RefusedError
from vfio_intx.host.holders import device_holders
from vfio_intx.host.iommu import SWITCH_ON, Group, blockers, is_vfio_driver
from vfio_intx.host.pci import NO_GROUP, PciFunction, list_functions, read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf


def require_root() -> None:
    """Refuse to go on without the rights that vfio and QEMU's monitor need. :raise RefusedError: for another user."""
    if os.geteuid() != 0:
        raise RefusedError(
            "this needs root: it asks QEMU and the kernel for what only root may", hint="run it with sudo"
        )


def require_ready(root: HostRoot, bdf: Bdf) -> PciFunction:
    """The function, if it can be attached with INTx.

    :raise MissingError: there is no such function, it has no INTx pin, no driver, or no IOMMU group.
    :raise RefusedError: it is bound to another driver, or its group has members that the host still uses.
    """
    function = read_function(root, bdf)
    if function is None:
        raise MissingError(
            f"there is no PCI function {bdf}", hint="lspci -D lists them; a card may move when others are added"
        )
    driver = function.driver.get("")
    if not is_vfio_driver(driver):
        state = f"bound to {driver}" if driver else "bound to no driver"
        raise RefusedError(f"{bdf} is {state}, not to vfio-pci", hint=f"vfio-intx bind {bdf}")
    if function.is_dead:
        raise MissingError(f"{bdf} does not answer (its configuration space reads all ones)", hint="reset or reseat it")
    if function.config.is_known and function.pin is None:
        raise MissingError(
            f"{bdf} has no INTx pin, so there is no line to forward", hint="such a device works with MSI in any guest"
        )
    if function.group.value == NO_GROUP:
        raise MissingError(
            f"{bdf} is in no IOMMU group: the host has no IOMMU in use",
            hint=SWITCH_ON,
        )
    _require_viable(root, function)
    return function


def _require_viable(root: HostRoot, function: PciFunction) -> None:
    read = (read_function(root, bdf) for bdf in list_functions(root).get(()))
    members = {one.bdf: one for one in read if one is not None and one.group.value == function.group.value}
    if function.group.value is None:
        return
    group = Group(function.group.value, tuple(sorted(members)))
    in_the_way = blockers(group, members, apart_from=(function.bdf,))
    if in_the_way:
        names = ", ".join(f"{one.bdf} ({one.driver.get('')})" for one in in_the_way)
        raise RefusedError(
            f"IOMMU group {group.number} of {function.bdf} is not viable: the host still uses {names}",
            hint="; ".join(f"vfio-intx bind {one.bdf}" for one in in_the_way),
        )


def require_free(root: HostRoot, function: PciFunction, ours: int | None) -> None:
    """Refuse a function that another process has open, or its group. :raise BusyError: naming that process.

    :param ours: the pid of the VM that shall get it, which may hold the group already for a sibling.
    """
    if function.group.value is None:
        return
    for holder in device_holders(root, function.bdf, function.group.value):
        if holder.pid != ours:
            raise BusyError(
                f"IOMMU group {function.group.value} of {function.bdf} is in use by {holder}",
                hint=f"if that is a VM: vfio-intx detach {function.bdf} --pid {holder.pid}",
            )
