"""Rules about the host line: who else is on it, and whether it works at all."""

from __future__ import annotations

from collections.abc import Iterator

from vfio_intx.chain.finding import Severity
from vfio_intx.chain.stage import Stage
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.rules.rule import Seen, rule
from vfio_intx.diagnose.subject import Subject, owner_of
from vfio_intx.host.iommu import is_vfio_driver
from vfio_intx.host.pci import PciFunction
from vfio_intx.wiring.refusals import refusals, release_command

#: ``__report_bad_irq`` comes at 99.9 % of 100,000; long before that the line is worth a warning.
_UNHANDLED_SHARE, _FEWEST = 0.01, 1000


@rule(
    "INTX001",
    Stage.HOST_IRQ,
    "the line would have to be exclusive, and somebody else is on it",
    "drivers/vfio/pci/vfio_pci_intrs.c: vfio_intx_enable() asks without IRQF_SHARED if !pci_2_3; kernel/irq/manage.c",
)
def exclusive_conflict(subject: Subject) -> Iterator[Seen]:
    """A card that cannot mask its own interrupt needs its host line for itself: vfio-pci then disables the whole line
    until the guest has acknowledged. If another handler is on that line, the kernel refuses the request, and QEMU ends
    with "Failed to setup INTx fd: Device or resource busy" or "VFIO_DEVICE_SET_IRQS failure: Device or resource busy".

    A card is taken to be such a one if the kernel lists it as broken, if its own test at boot failed, or if vfio-pci
    was loaded with nointxmask=1. The usual setpci probe does not see the first two.

    Either the other device moves (unbind its driver, another slot, MSI for it), or this card does.
    """
    if subject.verdict.masking is not Masking.EXCLUSIVE or not subject.handlers:
        return
    names = ", ".join(subject.handlers)
    found = (owner_of(handler, subject.neighbours) for handler in subject.handlers)
    owners = tuple(dict.fromkeys(owner for owner in found if owner is not None))
    needed = [(owner, reason) for owner in owners for reason in refusals(owner, subject.snapshot)]
    verb = "is" if len(subject.handlers) == 1 else "are"
    yield Seen(
        Severity.CRITICAL,
        f"IRQ {subject.irq} would have to be its alone, but {names} {verb} on it",
        (
            f"{subject.actions_file}: {names}",
            f"{subject.verdict.source}: {subject.verdict.why}",
            *(f"/sys/bus/pci/devices/{owner.bdf}: {owner.driver.get('')} on IRQ {subject.irq}" for owner in owners),
            *(f"{reason.source}: {owner.bdf} cannot move: it {reason.text}" for owner, reason in needed),
        ),
        "QEMU would fail: Failed to set up TRIGGER eventfd signaling for interrupt INTX-0: Device or resource busy",
        _way_out(subject, owners, movable=not needed),
    )


def _way_out(subject: Subject, owners: tuple[PciFunction, ...], *, movable: bool) -> str | None:
    """Free the line of what may go; what the host lives on is never told to go."""
    moves = [release_command(owner, subject.snapshot) for owner in owners if owner.driver.value]
    if movable:
        return " && ".join(moves) or None
    if subject.verdict.source == subject.snapshot.kernel.nointxmask.source:
        return f"modprobe -r vfio-pci && modprobe vfio-pci nointxmask=0 && vfio-intx bind {subject.name}"
    return "put this card into another slot, one with a line of its own"


@rule(
    "INTX014",
    Stage.HOST_IRQ,
    "the pin is routed to no host IRQ",
    "drivers/vfio/pci/vfio_pci_config.c: vfio_config_init() hides the pin if !pdev->irq or IRQ_NOTCONNECTED",
)
def no_route(subject: Subject) -> Iterator[Seen]:
    """The card has an interrupt pin, but the firmware's tables (ACPI _PRT) lead it nowhere: sysfs shows irq 0, or 255.
    vfio-pci then hides the pin from the guest. Seen with cards behind bridges that the firmware does not know.
    Before a function is first enabled these numbers mean nothing.

    Another slot, a firmware update or pci=routeirq may help; otherwise the card is to be used with MSI.
    """
    if subject.function.pin is None or subject.function.intx_irq.value != 0 or subject.irq is not None:
        return
    yield Seen(
        Severity.CRITICAL,
        f"its pin {subject.function.pin.name} leads to no host IRQ",
        (f"{subject.function.irq.source}: {subject.function.irq.value}",),
        "vfio-pci would show the guest a card without INTx",
    )


@rule(
    "INTX019",
    Stage.HOST_IRQ,
    "another function that goes to a guest is on the same line",
    "kernel/irq/manage.c: __setup_irq(), two requests without IRQF_SHARED cannot both be granted",
)
def spread_over_guests(subject: Subject) -> Iterator[Seen]:
    """Two functions on one host line, both on vfio-pci. If one of them needs the line for itself, only one of the two
    can be in a running VM at a time, whichever VM that is; nothing shows before both are started. If both mask
    themselves, sharing works, but each interrupt of one also wakes the handler of the other.

    A line that has to be exclusive must not be spread: put the cards into slots with lines of their own.
    """
    if subject.verdict.masking is not Masking.EXCLUSIVE:
        return
    rivals = [other for other in subject.neighbours if is_vfio_driver(other.driver.get(""))]
    if not rivals:
        return
    names = ", ".join(str(other.bdf) for other in rivals)
    yield Seen(
        Severity.CRITICAL,
        f"{names} on vfio-pci shares IRQ {subject.irq}, and it cannot be shared",
        tuple(f"{other.irq.source}: {subject.irq}, {other.driver.source}: {other.driver.value}" for other in rivals),
        "only one of them can be in a running VM at a time; the second QEMU fails with EBUSY",
        " && ".join(release_command(other, subject.snapshot) for other in rivals),
    )


@rule(
    "INTX021",
    Stage.HOST_MASK,
    "many interrupts of the line are claimed by no handler",
    "kernel/irq/spurious.c: note_interrupt() disables a line at 99,900 unhandled of 100,000",
)
def going_bad(subject: Subject) -> Iterator[Seen]:
    """The kernel counts, for each line, the interrupts that no handler claimed. When nearly all of 100,000 were
    unclaimed it disables the line for everybody ("nobody cared"). A share that grows long before that says that some
    device on the line asserts without being quieted, or lies about its Interrupt Status bit.
    """
    spurious = subject.snapshot.spurious.get(subject.irq) if subject.irq else None
    if spurious is None or spurious.value is None or spurious.value.unhandled < _FEWEST:
        return
    share = spurious.value.unhandled / max(1, spurious.value.count)
    if share < _UNHANDLED_SHARE:
        return
    yield Seen(
        Severity.WARNING,
        f"{spurious.value.unhandled} of the last {spurious.value.count} interrupts of IRQ {subject.irq} had no taker",
        (f"{spurious.source}: count {spurious.value.count}, unhandled {spurious.value.unhandled}",),
        "at 99,900 of 100,000 the kernel disables the line for all who are on it",
    )


RULES = (exclusive_conflict, no_route, spread_over_guests, going_bad)
