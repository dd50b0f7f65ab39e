"""What would happen if a function were given to a guest by INTx: drawn from a snapshot alone, nothing is touched."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vfio_intx.abi.pciconf import PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX
from vfio_intx.host.iommu import blockers, is_vfio_driver
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.snapshot import Snapshot


class Masking(Enum):
    """How vfio would keep the line quiet between an interrupt and the guest's acknowledge."""

    DISINTX = "disintx"
    """By the function's own DisINTx bit; the line can be shared."""
    EXCLUSIVE = "exclusive"
    """By disabling the whole host line, which nobody else may then use (``vfio_intx_set_signal``)."""
    NONE = "none"
    """There is no INTx to mask."""
    UNKNOWN = "unknown"
    """What decides it could not be read."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a function would be masked, and from what that follows."""

    masking: Masking
    why: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the main questions come to for one function.

    :ivar handlers: the handlers on its line now, its own left out as far as it can be told.
    :ivar neighbours: other functions that sit on the same line.
    :ivar outlook: what would happen on attach, in plain sentences, the worst first.
    :ivar ready: whether nothing stands against it.
    """

    function: PciFunction
    verdict: Verdict
    handlers: tuple[str, ...]
    neighbours: tuple[PciFunction, ...]
    outlook: tuple[str, ...]
    ready: bool


def masking_verdict(function: PciFunction, snapshot: Snapshot) -> Verdict:
    """Whether this function can mask itself, as vfio-pci will see it (``vfio_pci_core_enable``: ``pci_2_3``)."""
    if function.config.value is None:
        return Verdict(Masking.UNKNOWN, function.config.error or "its configuration space could not be read")
    if function.is_dead:
        return Verdict(Masking.UNKNOWN, "it answers all ones")
    if function.pin is None or function.is_virtual_function:
        return Verdict(Masking.NONE, "it has no INTx pin")
    if snapshot.kernel.nointxmask.value:
        return Verdict(Masking.EXCLUSIVE, "vfio-pci has nointxmask=1")
    return Verdict(Masking.DISINTX, "PCI 2.3 DisINTx, and the kernel does not know it as broken")


def own_handlers(function: PciFunction, handlers: tuple[str, ...]) -> tuple[str, ...]:
    """Those handlers of a line that are this function's, as far as their names tell."""
    driver = function.driver.get("")
    names = {f"vfio-intx({function.bdf})", *function.interfaces.get(())}
    plain = driver.replace("-", "_")

    def is_own(handler: str) -> bool:
        head, _, rest = handler.partition(":")
        if rest.startswith("usb"):
            return rest in function.files
        return handler in names or (driver != "" and head.replace("-", "_") == plain)

    return tuple(handler for handler in handlers if is_own(handler))


def has_msi(function: PciFunction) -> tuple[bool, bool] | None:
    """Whether it is capable of MSI and of MSI-X; None where its capabilities could not be seen."""
    config = function.config.value
    if config is None or config.is_dead or not config.has_capabilities:
        return None
    return config.capability(PCI_CAP_ID_MSI) is not None, config.capability(PCI_CAP_ID_MSIX) is not None


def predict(function: PciFunction, snapshot: Snapshot) -> Prediction:
    """The prediction for one function of a snapshot."""
    irq = function.intx_irq.value
    handlers = snapshot.handlers_of(irq) if irq else ()
    own = own_handlers(function, handlers)
    others = tuple(handler for handler in handlers if handler not in own)
    neighbours = tuple(f for f in snapshot.on_line(irq) if f.bdf != function.bdf) if irq else ()
    verdict = masking_verdict(function, snapshot)
    against = (
        *_against_device(function),
        *_against_group(function, snapshot),
        *_against_line(function, verdict, others),
    )
    outlook = against or (_fair_weather(function, verdict, others),)
    notes = (*_msi_note(function),)
    return Prediction(function, verdict, others, neighbours, (*outlook, *notes), not against)


def _against_device(function: PciFunction) -> tuple[str, ...]:
    if function.is_dead:
        return ("It answers all ones: it is gone or powered down, and QEMU would refuse it.",)
    if function.config.value is None:
        return (f"Its pin is unknown: {function.config.error}.",)
    if function.is_bridge:
        return ("It is a bridge: vfio-pci does not take bridges.",)
    if function.is_virtual_function:
        return ("A virtual function has no INTx: there is no line to forward.",)
    if function.pin is None and function.config.value.raw_pin:
        return (f"Its interrupt pin reads {function.config.value.raw_pin}: QEMU would refuse it.",)
    if function.pin is None:
        return ("It has no INTx pin: there is no line to forward.",)
    return ()


def _against_group(function: PciFunction, snapshot: Snapshot) -> tuple[str, ...]:
    group = snapshot.group_of(function)
    if group is None:
        return (
            "It is in no IOMMU group, so vfio-pci would not take it."
            if snapshot.iommu.present
            else "There is no IOMMU in use, so vfio-pci would not take it.",
        )
    others = blockers(group, snapshot.functions, apart_from=(function.bdf,))
    if not others:
        return ()
    names = ", ".join(f"{other.bdf} ({other.driver.get('?')})" for other in others)
    return (f"Its IOMMU group {group.number} would not be viable: {names} would stay with the host.",)


def _against_line(function: PciFunction, verdict: Verdict, others: tuple[str, ...]) -> tuple[str, ...]:
    if verdict.masking is not Masking.EXCLUSIVE or not others:
        return ()
    names = ", ".join(others)
    return (
        f"It cannot mask itself ({verdict.why}) and IRQ {function.intx_irq.value} is also used by {names}: "
        "QEMU would fail with EBUSY.",
    )


def _fair_weather(function: PciFunction, verdict: Verdict, others: tuple[str, ...]) -> str:
    where = "It is on vfio-pci already" if is_vfio_driver(function.driver.get("")) else "It can be bound to vfio-pci"
    line = f"IRQ {function.intx_irq.value}" if function.intx_irq.value else "its line, not routed yet,"
    if verdict.masking is Masking.EXCLUSIVE:
        return f"{where}; {line} would be its alone ({verdict.why})."
    shared = f" would be shared with {', '.join(others)}" if others else " would be its alone"
    return f"{where}; {line}{shared}, and it masks itself by DisINTx."


def _msi_note(function: PciFunction) -> tuple[str, ...]:
    msi = has_msi(function)
    if function.pin is None or msi is None or not any(msi):
        return ()
    kind = "MSI-X" if msi[1] else "MSI"
    return (f"It can do {kind}: a guest driver that uses that leaves INTx silent.",)
