"""Rules about the card itself: its pin, its power, its other kinds of interrupt."""

from __future__ import annotations

from collections.abc import Iterator

from vfio_intx.abi.pciconf import PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX
from vfio_intx.chain.finding import Severity
from vfio_intx.chain.stage import Stage
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.rules.rule import Seen, rule
from vfio_intx.diagnose.subject import Subject
from vfio_intx.host.pci import PciFunction


def has_msi(function: PciFunction) -> tuple[bool, bool] | None:
    """Whether it is capable of MSI and of MSI-X; None where its capabilities could not be seen."""
    config = function.config.value
    if config is None or config.is_dead or not config.has_capabilities:
        return None
    return config.capability(PCI_CAP_ID_MSI) is not None, config.capability(PCI_CAP_ID_MSIX) is not None


@rule(
    "INTX013",
    Stage.DEVICE,
    "the card does not answer, or its pin register is nonsense",
    "QEMU hw/vfio/pci.c: invalid PCI interrupt pin; PCI 3.0, 6.1: all ones where nobody answers",
)
def dead_or_bad_pin(subject: Subject) -> Iterator[Seen]:
    """ "invalid PCI interrupt pin 255" has two causes. If the vendor reads ffff too, nobody answers: the card fell to
    D3cold, lost its link or its power, and only a power cycle of the host (or handing over all its functions together)
    brings it back. If the rest of the header is sane, the firmware left the pin register unset: the slot was made for
    another card.
    """
    function = subject.function
    if function.is_dead:
        yield Seen(
            Severity.CRITICAL,
            "it answers all ones: it is gone, or powered down",
            (f"{function.config.source}: ffffffff", f"{function.power.source}: {function.power.get('unknown')}"),
            "QEMU refuses it: invalid PCI interrupt pin 255; if a rescan does not bring it back, power the host off",
            f"echo 1 > /sys/bus/pci/devices/{function.bdf}/remove && echo 1 > /sys/bus/pci/rescan",
        )
    elif function.config.value is not None and function.config.value.raw_pin > 4:
        yield Seen(
            Severity.CRITICAL,
            f"its interrupt pin register reads {function.config.value.raw_pin}",
            (f"{function.config.source}: pin {function.config.value.raw_pin} of 1 to 4",),
            "QEMU refuses it: invalid PCI interrupt pin",
        )


@rule(
    "INTX016",
    Stage.DEVICE,
    "the card can do MSI, and INTx would only be the guest driver's choice",
    "PCI 3.0, 6.8.1: a function with MSI enabled must not assert INTx",
)
def msi_available(subject: Subject) -> Iterator[Seen]:
    """The card has MSI or MSI-X, which need no sharing, no masking and no acknowledge by the host. A guest driver that
    uses them leaves the line silent, and all that is said here about INTx does not matter. A guest that stays on INTx
    (an old Windows driver without MSISupported, a Linux driver told to) gives latency away.
    """
    msi = has_msi(subject.function)
    if subject.function.pin is None or msi is None or not any(msi):
        return
    kind = "MSI-X" if msi[1] else "MSI"
    on_intx = subject.vm.guest_uses == "intx"
    yield Seen(
        Severity.WARNING if on_intx else Severity.OK,
        f"it can do {kind}"
        + (", but the guest's driver stays on INTx" if on_intx else "; most guest drivers use that"),
        (f"{subject.function.config.source}: {kind} capability",),
        "each interrupt costs an acknowledge through KVM and vfio" if on_intx else "INTx stays silent then",
        "switch on MSI in the guest's driver (Windows: MSISupported=1; Linux: the module's msi option)"
        if on_intx
        else None,
    )


@rule(
    "INTX017",
    Stage.DEVICE,
    "vfio-pci hides this card's INTx",
    "drivers/vfio/pci/vfio_pci_core.c: vfio_pci_nointx()",
)
def hidden(subject: Subject) -> Iterator[Seen]:
    """For some cards the kernel knows that INTx cannot be masked by any means, and vfio-pci shows the guest no pin.
    The log says "Masking broken INTx support" when the card is opened. It works with MSI-X; there is no line.
    """
    if subject.verdict.masking is Masking.HIDDEN:
        yield Seen(
            Severity.CRITICAL,
            "vfio-pci hides its INTx; only MSI or MSI-X works",
            (f"{subject.verdict.source}: {subject.verdict.why}",),
            "the guest sees no interrupt pin; a test of INTx has to skip this card",
        )


@rule(
    "INTX022",
    Stage.DEVICE,
    "there is no INTx to forward",
    "drivers/vfio/pci/vfio_pci_core.c: vfio_pci_get_irq_count() is 0 where the virtual pin is 0",
)
def nothing_to_forward(subject: Subject) -> Iterator[Seen]:
    """The function has no interrupt pin, is an SR-IOV virtual function (which by the standard has none), or is a
    bridge, which vfio-pci does not take.
    """
    function = subject.function
    if function.is_bridge:
        why, source = "it is a bridge, which vfio-pci does not take", function.config.source
    elif function.is_virtual_function:
        why, source = "a virtual function has no INTx", f"/sys/bus/pci/devices/{function.bdf}/physfn"
    elif function.config.value is not None and not function.is_dead and function.config.value.raw_pin == 0:
        why, source = "it has no interrupt pin", function.config.source
    else:
        return
    yield Seen(Severity.CRITICAL, why, (f"{source}: {why}",), "there is no line to forward")


@rule(
    "INTX023",
    Stage.DEVICE,
    "what decides could not be read",
    "drivers/pci/pci-sysfs.c: pci_read_config() gives a mere user 64 bytes; D3cold is not woken",
)
def unknown(subject: Subject) -> Iterator[Seen]:
    """Some facts need root, and a card in D3cold is not woken only to be looked at. What they would tell is unknown,
    which is not the same as "no". Writing "on" to its power/control wakes it, and "auto" lets it sleep again.

    A function that nobody has enabled since the host was booted has no host line yet: sysfs shows what the firmware
    once wrote, and the kernel asks for the real line when the function is enabled. That matters for a card that needs
    its line for itself. Enabling it for a moment, without a driver, routes it and does nothing else. While a driver
    uses MSI, sysfs shows an MSI vector in place of the line.
    """
    function, snapshot = subject.function, subject.snapshot
    if function.config.value is None:
        why = function.config.error or "unreadable"
        yield Seen(
            Severity.UNKNOWN,
            "its configuration space could not be read",
            (f"{function.config.source}: {why}",),
            "whether it has a pin is unknown",
            _reading(subject),
        )
    elif not snapshot.log.is_known and subject.verdict.masking is Masking.UNKNOWN and not function.is_dead:
        yield Seen(
            Severity.UNKNOWN,
            "how it would be masked is unknown",
            (f"{snapshot.log.source}: {snapshot.log.error}",),
            subject.verdict.why,
            f"sudo vfio-intx check {function.bdf}",
        )
    elif subject.irq is None and not function.intx_irq.is_known and subject.verdict.masking is Masking.EXCLUSIVE:
        yield Seen(
            Severity.UNKNOWN,
            "it needs a host line for itself, and which line it will have is not known yet",
            (
                f"{function.irq.source}: {function.irq.value}, but {function.intx_irq.error}",
                f"{subject.verdict.source}: {subject.verdict.why}",
            ),
            "whether somebody else is on that line cannot be told",
            _route(subject),
        )


def _reading(subject: Subject) -> str:
    """How to have its configuration space read: by its being awake, or by more rights."""
    check = f"vfio-intx check {subject.name}"
    if subject.function.power.value == "D3cold":
        return f"echo on > /sys/bus/pci/devices/{subject.name}/power/control && {check}"
    return f"sudo {check}"


def _route(subject: Subject) -> str:
    """How to have the line shown: end its MSI, or enable it, which the kernel takes only of a driverless function."""
    name = subject.name
    if not subject.function.is_unrouted:
        return f"vfio-intx bind {name} && vfio-intx check {name}"
    enable = f"/sys/bus/pci/devices/{name}/enable"
    away, back = (f"vfio-intx unbind {name} && ", f" && vfio-intx bind {name}") if subject.driver else ("", "")
    return f"{away}echo 1 > {enable} && echo 0 > {enable}{back} && vfio-intx check {name}"


RULES = (dead_or_bad_pin, msi_available, hidden, nothing_to_forward, unknown)
