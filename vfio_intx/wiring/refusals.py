"""Why a function had better stay with the host: what ``bind`` refuses without ``--force``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfio_intx.host.pci import PciFunction
from vfio_intx.host.snapshot import Snapshot

#: Drivers that are known to break the kernel, or to hang in it, when a running device is taken from them.
UNSAFE_UNBIND = {
    "radeon": "its unbind left a freed interrupt domain behind; the next request for the line was an oops",
    "nvidia": "its remove waits, for ever, until the last user of the card is gone",
}
_DISPLAY = 0x03

_ADVICE = {
    "network": "move the address to another interface first (ip route; ip addr)",
    "disk": "unmount it, or swapoff, first (findmnt; swapon --show)",
    "console": "take console= for it from the kernel command line and reboot",
}


class Refusal(NamedTuple):
    """One reason.

    :ivar text: to complete "BDF …".
    :ivar source: the file that says so.
    :ivar advice: what to do instead of ``--force``.
    """

    text: str
    source: str
    advice: str


def refusals(function: PciFunction, snapshot: Snapshot) -> tuple[Refusal, ...]:
    """Every reason not to take this function from the host, as things are in the snapshot."""
    return tuple(_reasons(function, snapshot))


def _reasons(function: PciFunction, snapshot: Snapshot) -> Iterator[Refusal]:
    for use in snapshot.uses.get(function.bdf, ()):
        yield Refusal(use.text, use.source, _ADVICE[use.what])
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
            f"has the driver {driver}, which is unsafe to unbind: {UNSAFE_UNBIND[driver]}",
            f"{where}/driver",
            f"keep {driver} from loading and bind it at boot: vfio-intx persist {function.bdf}",
        )
