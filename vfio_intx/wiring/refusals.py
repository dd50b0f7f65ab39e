"""Why a function had better stay with the host: what ``bind`` refuses without ``--force``, and what sets one free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfio_intx.host.iommu import is_vfio_driver
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.snapshot import Snapshot


class UnsafeDriver(NamedTuple):
    """Why a driver must not be taken from a running device, and where that is known from."""

    why: str
    source: str


#: Drivers that are known to break the kernel, or to hang in it, when a running device is taken from them. A driver is
#: listed for its own code or for reports that agree; what depends on the moment (a display server, virtual functions)
#: is looked for in the host instead.
UNSAFE_UNBIND = {
    "radeon": UnsafeDriver(
        "its unbind left a freed interrupt domain behind; the next request for the line was an oops",
        "a host's log of 2026: WARN in irq_domain_remove(), then BUG in request_threaded_irq()",
    ),
    "nvidia": UnsafeDriver(
        "its remove waits, with the device locked, until the last user of the card is gone",
        "NVIDIA's open-gpu-kernel-modules: nv_pci_remove() in kernel-open/nvidia/nv-pci.c; issues 535 and 1119 there",
    ),
}
_DISPLAY = 0x03

_ADVICE = {
    "network": "move the address, bridge or VLAN to another interface first (ip route; ip addr; ip -d link)",
    "disk": "unmount it, swapoff, or stop the array, volume or pool first (lsblk; findmnt; zpool status)",
    "console": "take console= for it from the kernel command line and reboot",
    "display": "end what draws on it first (the display server), or keep its driver from loading: vfio-intx persist",
}


class Refusal(NamedTuple):
    """One reason.

    :ivar text: to complete "BDF …".
    :ivar source: the file that says so.
    :ivar advice: what to do instead of ``--force``.
    :ivar now_only: whether it speaks only against taking the function from a running host. At the next boot, before
        the host's driver has it, there is nothing in the way.
    """

    text: str
    source: str
    advice: str
    now_only: bool = False


def refusals(function: PciFunction, snapshot: Snapshot) -> tuple[Refusal, ...]:
    """Every reason not to take this function from the host, as things are in the snapshot."""
    return tuple(_reasons(function, snapshot))


def _reasons(function: PciFunction, snapshot: Snapshot) -> Iterator[Refusal]:
    for use in snapshot.uses.get(function.bdf, ()):
        yield Refusal(use.text, use.source, _ADVICE[use.what], now_only=use.what == "display")
    where = f"/sys/bus/pci/devices/{function.bdf}"
    ids = function.ids.value
    if function.boot_vga.value and (ids is None or ids.base_class == _DISPLAY):
        yield Refusal(
            "is the display that the firmware booted with",
            f"{where}/boot_vga",
            "make another card the primary one in the firmware setup",
        )
    driver = function.driver.get("")
    if driver in UNSAFE_UNBIND:
        yield Refusal(
            f"has the driver {driver}, which is unsafe to unbind: {UNSAFE_UNBIND[driver].why}",
            f"{where}/driver",
            f"keep {driver} from loading and bind it at boot: vfio-intx persist {function.bdf}",
            now_only=True,
        )
    if function.virtual_functions:
        # pci_disable_sriov() removes them, and where vfio-pci has one, its remove waits for the guest.
        yield Refusal(
            f"has {function.virtual_functions} virtual functions, which go when its driver goes, from guests too",
            f"{where}/virtfn0",
            f"when no guest has one: echo 0 > {where}/sriov_numvfs",
            now_only=True,
        )


def release_command(function: PciFunction, snapshot: Snapshot) -> str:
    """The command that takes a function from its driver, as it is to be typed.

    What vfio has may be in a running VM, where a plain write to ``unbind`` would block in the kernel until that VM
    ends; our own verbs look first.
    """
    driver = function.driver.get("")
    if is_vfio_driver(driver):
        ours = any(claim.source.endswith(".record") for claim in snapshot.claims.get(function.bdf, ()))
        return f"vfio-intx {'restore' if ours else 'unbind'} {function.bdf}"
    from shlex import quote  # not at the top: scan does without it

    return f"echo {function.bdf} > {quote(f'/sys/bus/pci/drivers/{driver}/unbind')}"
