"""Rules about what has happened already: the kernel's log and QEMU's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vfio_intx.chain.finding import Severity
from vfio_intx.chain.stage import Stage
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.rules.rule import Seen, rule
from vfio_intx.diagnose.subject import Subject
from vfio_intx.host.irq import vfio_action
from vfio_intx.host.log import NobodyCared

_BUSY = r"(?:Failed to setup INTx fd|INTX-0.*?): .*?Device or resource busy|INTx fd: Device or resource busy"
_INVALID = r"interrupt INTX-0.*Invalid argument"
_VFIO_HANDLER = "vfio_intx_handler"
#: Lines that the kernel gives up within this time of each other have the same cause.
_TOGETHER_S = 10.0


@rule(
    "INTX002",
    Stage.HOST_IRQ,
    "the kernel refused the line to vfio, or to another driver because of it",
    "kernel/irq/manage.c: __setup_irq(), mismatch",
)
def flags_mismatch(subject: Subject) -> Iterator[Seen]:
    """The kernel logs "genirq: Flags mismatch" when somebody asks for a line that its holders do not share. Bit 0x80
    (IRQF_SHARED) of the two flag words tells who would not: newer kernels set other bits as well. The second name is
    the holder of the line: that is the driver to move.
    """
    name = vfio_action(subject.function.bdf) if subject.history.mismatches else ""
    for seen in subject.history.mismatches:
        if name not in (seen.asked, seen.holder) and seen.irq != subject.irq:
            continue
        unwilling = seen.asked if not seen.asked_shared else seen.holder
        yield Seen(
            Severity.WARNING,
            f"IRQ {seen.irq} was refused to {seen.asked}: {seen.holder} holds it, and {unwilling} does not share",
            (f"{subject.snapshot.log.source}: genirq: Flags mismatch irq {seen.irq}, {seen.asked} vs. {seen.holder}",),
            "the device that asked has no interrupt: a VM does not start, a host driver does not load",
        )


@rule(
    "INTX003",
    Stage.TRIGGER,
    "QEMU could not have the line",
    "QEMU hw/vfio/pci.c: vfio_intx_enable(); two wordings, before and after 4.1",
)
def qemu_busy(subject: Subject) -> Iterator[Seen]:
    """QEMU said that it could not set up the INTx trigger, with EBUSY. The cause is INTX001 or INTX019: the kernel's
    log has the other holder's name in a "Flags mismatch" line of the same second.
    """
    for message in subject.vm.messages:
        if re.search(_BUSY, message):
            yield Seen(
                Severity.CRITICAL,
                "QEMU was refused the INTx line (EBUSY)",
                (f"QEMU: {message}",),
                "the VM does not start, or the hot-plug fails",
                "dmesg | grep 'Flags mismatch'",
            )
            return


@rule(
    "INTX004",
    Stage.TRIGGER,
    "QEMU asked for INTx while another index was still set up",
    'QEMU "vfio/pci: Clear MSI-X IRQ index always" (8.2.x); RHEL-21293',
)
def qemu_invalid(subject: Subject) -> Iterator[Seen]:
    """QEMU got EINVAL for the INTx trigger: the kernel still has MSI-X set up for the device. QEMU before the fix did
    not take that index down when no vector was in use, for instance when the guest unloads its driver.
    """
    for message in subject.vm.messages:
        if re.search(_INVALID, message):
            yield Seen(
                Severity.CRITICAL,
                "QEMU's request for INTx was invalid (EINVAL): a stale MSI-X index",
                (f"QEMU: {message}",),
                "the device has no interrupt until the VM is restarted",
                "upgrade QEMU to 9.0 or later",
            )
            return


def _given_up(subject: Subject) -> NobodyCared | None:
    return next((seen for seen in subject.history.given_up if seen.irq == subject.irq), None)


@rule(
    "INTX005",
    Stage.HOST_IRQ,
    "the kernel has disabled the line",
    "kernel/irq/spurious.c: __report_bad_irq()",
)
def line_disabled(subject: Subject) -> Iterator[Seen]:
    """ "irq N: nobody cared … Disabling IRQ #N": of 100,000 interrupts fewer than 100 were claimed. The line is off for
    every device on it; the kernel only polls it ten times a second. It stays so until another handler asks for the line
    (__setup_irq() gives it a further chance), or the machine is booted anew. The log does not tell of that: where the
    drivers of the line were bound anew after the time given, this is history.
    """
    seen = _given_up(subject)
    if seen is None:
        return
    yield Seen(
        Severity.CRITICAL,
        f"the kernel disabled IRQ {seen.irq}: nobody cared",
        (
            f"{subject.snapshot.log.source}: irq {seen.irq}: nobody cared, {seen.at:.0f} s after boot; "
            f"handlers: {', '.join(seen.handlers) or '?'}",
        ),
        "no device on the line has interrupts; a poll ten times a second makes them look merely slow",
        "stop the VMs and unbind every driver of this line, then bind them again (or reboot)",
    )


@rule(
    "INTX006",
    Stage.HOST_MASK,
    "the card's DisINTx does not do what it says",
    "drivers/vfio/pci/vfio_pci_intrs.c: vfio_intx_handler() answers IRQ_NONE unless the Status register owns up",
)
def false_disintx(subject: Subject) -> Iterator[Seen]:
    """The line was given up while vfio's was the only handler that it had, and vfio took the card for one that masks
    itself. So the card asserts its line without setting Interrupt Status, or goes on asserting with DisINTx set.

    nointxmask=1 makes vfio-pci mask the line itself, which works only if nobody else is on that line.
    """
    seen = _given_up(subject)
    if seen is None or set(seen.handlers) != {_VFIO_HANDLER} or subject.verdict.masking is not Masking.DISINTX:
        return
    free = not subject.handlers
    yield Seen(
        Severity.CRITICAL,
        "its DisINTx or Interrupt Status bit lies: vfio's handler alone could not quiet the line",
        (f"{subject.snapshot.log.source}: irq {seen.irq}: the only handler was {_VFIO_HANDLER}",),
        "the line will be disabled again and again",
        "modprobe -r vfio-pci && modprobe vfio-pci nointxmask=1"
        if free
        else "a slot with a line of its own first; then modprobe -r vfio-pci && modprobe vfio-pci nointxmask=1",
    )


@rule(
    "INTX007",
    Stage.HOST_IRQ,
    "other devices went down with the line",
    "kernel/irq/spurious.c: the whole line is disabled, not one handler",
)
def collateral(subject: Subject) -> Iterator[Seen]:
    """A disabled line takes every device on it down, and a device that asserts through two lines (an APIC pin and its
    legacy twin) takes both. These are the victims, not the cause.
    """
    seen = _given_up(subject)
    if seen is None:
        return
    also = [
        other for other in subject.history.given_up if other.irq != seen.irq and abs(other.at - seen.at) < _TOGETHER_S
    ]
    if not also and not subject.handlers:
        return
    victims = [*subject.handlers, *(f"IRQ {other.irq}" for other in also)]
    yield Seen(
        Severity.WARNING,
        f"the disabled line took others with it: {', '.join(victims)}",
        (
            *((f"{subject.actions_file}: {', '.join(subject.handlers)}",) if subject.handlers else ()),
            *(f"{subject.snapshot.log.source}: irq {other.irq}: nobody cared" for other in also),
        ),
        "they have no interrupts either",
    )


@rule(
    "INTX020",
    Stage.DEVICE,
    "its DMA is refused: this is not an interrupt fault",
    "drivers/iommu/intel/dmar.c: dmar_fault_do_one(); drivers/iommu/amd/iommu.c",
)
def not_intx(subject: Subject) -> Iterator[Seen]:
    """The IOMMU reports faults for this function. A device whose DMA is refused often looks as if its interrupts were
    lost: no data comes. Mend that first (ROM, reset, a driver that runs on both sides), before blaming INTx.
    """
    bdf = subject.function.bdf
    marks = [f" {bdf}: AMD-Vi:", f"device={bdf} ", f"[{bdf}]"]
    if bdf.domain == 0:  # words without a segment are read as the first one's
        short = f"{bdf.bus:02x}:{bdf.slot:02x}.{bdf.function}"
        marks += [f"[{short}]", f"device={short} "]
    faults = [line for line in subject.history.faults if any(mark in line.text for mark in marks)]
    if faults:
        yield Seen(
            Severity.WARNING,
            f"the IOMMU refused its DMA {len(faults)} times",
            (f"{subject.snapshot.log.source}: {faults[-1].text[:160]}",),
            "data is lost, and it looks like lost interrupts",
        )


RULES = (flags_mismatch, qemu_busy, qemu_invalid, line_disabled, false_disintx, collateral, not_intx)
