"""How vfio-pci will mask a function's interrupt until the guest has acknowledged it."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vfio_intx.host import quirks
from vfio_intx.host.irq import vfio_action
from vfio_intx.host.log import History
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.snapshot import Snapshot


class Masking(Enum):
    """How the line is kept quiet between an interrupt and the guest's acknowledge."""

    DISINTX = "disintx"
    """By the function's own DisINTx bit; the line can be shared."""
    EXCLUSIVE = "exclusive"
    """By disabling the whole host line, which nobody else may then use (``vfio_intx_enable``)."""
    HIDDEN = "hidden"
    """vfio-pci shows the guest no pin at all (``vfio_pci_nointx``)."""
    NONE = "none"
    """There is no INTx to mask."""
    UNKNOWN = "unknown"
    """What decides it could not be read."""


class Verdict(NamedTuple):
    """How a function would be masked, from what that follows, and where that stands."""

    masking: Masking
    why: str
    source: str


def masking_verdict(
    function: PciFunction, snapshot: Snapshot, history: History, disintx_changes: bool | None = None
) -> Verdict:
    """Whether this function can mask itself, as vfio-pci will see it (``pci_intx_mask_supported``, ``nointxmask``).

    The kernel tests DisINTx by writing to it when it finds a card, and shows the result nowhere. So what is said here
    rests on the kernel's list of broken cards, on vfio-pci's parameter, and on what the log tells of earlier tries.

    :param disintx_changes: what the write test gave, where it was asked for. It is the kernel's own: True speaks
        against what the log tells, not against a list or the parameter.
    """
    config = function.config
    if config.value is None:
        return Verdict(Masking.UNKNOWN, config.error or "its configuration space could not be read", config.source)
    if function.is_dead:
        return Verdict(Masking.UNKNOWN, "it answers all ones", config.source)
    if function.pin is None or function.is_virtual_function:
        return Verdict(Masking.NONE, "it has no INTx pin", config.source)
    if disintx_changes is False:
        return Verdict(Masking.EXCLUSIVE, "its DisINTx bit does not change when it is written", config.source)
    return (
        _by_sharing(function, snapshot)
        or _by_lists(function, snapshot)
        or _by_parameter(snapshot)
        or (None if disintx_changes else _by_log(function, snapshot, history))
        or _presumed(function)
    )


def _by_sharing(function: PciFunction, snapshot: Snapshot) -> Verdict | None:
    """What it has been granted is the best proof: vfio-pci is on a line that others are on."""
    irq = function.intx_irq.value
    handlers = snapshot.handlers_of(irq) if irq else ()
    if vfio_action(function.bdf) not in handlers or len(handlers) < 2:
        return None
    return Verdict(Masking.DISINTX, f"it shares IRQ {irq} now", f"/sys/kernel/irq/{irq}/actions")


def _by_lists(function: PciFunction, snapshot: Snapshot) -> Verdict | None:
    ids = function.ids.value
    key = (ids.vendor, ids.device) if ids is not None else (0, 0)
    source = f"vfio_intx/host/quirks.py, from {quirks.SOURCE}"
    if key in quirks.HIDDEN and not snapshot.kernel.nointxmask.value:  # in the order of vfio_pci_core_enable()
        return Verdict(Masking.HIDDEN, f"{ids} is on vfio-pci's list of cards whose INTx it hides", source)
    if key in quirks.BROKEN:
        return Verdict(Masking.EXCLUSIVE, f"{ids} is on the kernel's list of cards whose DisINTx is broken", source)
    if key in quirks.BROKEN_BY_FIRMWARE:
        said = f"{function.bdf}: ConnectX-4: FW"
        if any(said in line.text for line in snapshot.log.get(())):
            return Verdict(Masking.EXCLUSIVE, "its firmware cannot mask INTx, the kernel log says", snapshot.log.source)
        if not snapshot.log.is_known:
            return Verdict(Masking.UNKNOWN, "it depends on its firmware, and the kernel log could not be read", source)
    return None


def _by_parameter(snapshot: Snapshot) -> Verdict | None:
    parameter = snapshot.kernel.nointxmask
    return Verdict(Masking.EXCLUSIVE, "vfio-pci has nointxmask=1", parameter.source) if parameter.value else None


def _by_log(function: PciFunction, snapshot: Snapshot, history: History) -> Verdict | None:
    name = vfio_action(function.bdf) if history.mismatches else ""
    for mismatch in history.mismatches:
        if (mismatch.asked == name and not mismatch.asked_shared) or (
            mismatch.holder == name and not mismatch.holder_shared
        ):
            why = (
                "vfio-pci asked for its line exclusively before: the kernel's own test of DisINTx failed, or "
                "nointxmask was 1 then (check --write-test tells)"
            )
            return Verdict(Masking.EXCLUSIVE, why, snapshot.log.source)
    return None


def _presumed(function: PciFunction) -> Verdict:
    config = function.config
    if config.value is not None and config.value.intx_disabled:
        return Verdict(Masking.DISINTX, "its DisINTx bit is set now, so it has one", config.source)
    return Verdict(Masking.DISINTX, "nothing speaks against its DisINTx (PCI 2.3)", config.source)
