"""Rules about the virtual machine: which scheme it will get, and what its guest made of the pin."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vfio_intx.chain.finding import Severity
from vfio_intx.chain.scheme import Scheme
from vfio_intx.chain.stage import Stage
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.rules.rule import Seen, rule
from vfio_intx.diagnose.subject import Subject
from vfio_intx.errors import UsageError

#: The one machine type whose default is not the kernel's irqchip: QEMU 4.0's q35 (4.0.1 went back with q35-4.0.1).
_SPLIT_BY_DEFAULT = frozenset({"pc-q35-4.0"})
#: QEMU's types for x86, those of distributions too (``pc-q35-rhel9.4.0``, ``pc-i440fx-9.2+pve0``).
_MACHINE = re.compile(r"pc|q35|microvm|isapc|pc-(?:i440fx|q35)-[0-9a-z][0-9a-z.+-]*")


def irqchip_of(machine: str) -> str:
    """The ``kernel-irqchip`` that a machine type has by default; the type as ``-machine`` has it, or QEMU's QOM.

    :raise UsageError: it is none of a PC's.
    """
    name = machine.removesuffix("-machine")
    if not _MACHINE.fullmatch(name):
        raise UsageError(
            f"--machine: {machine[:40]!r} is no machine type of an x86 guest", hint="such as pc, q35 or pc-q35-7.2"
        )
    return "split" if name in _SPLIT_BY_DEFAULT else "on"


def predicted_scheme(subject: Subject) -> tuple[Scheme, str] | None:
    """Which scheme stock QEMU would make live, and why; None where the function has no INTx at all."""
    if subject.function.pin is None or subject.verdict.masking is Masking.HIDDEN:
        return None
    if not subject.snapshot.kernel.kvm_device:
        return Scheme.TRAP, "there is no /dev/kvm"
    if subject.vm.irqchip == "off":
        return Scheme.TRAP, "kernel-irqchip=off"
    if subject.vm.no_kvm_intx:
        return Scheme.TRAP, "x-no-kvm-intx=on"
    if subject.vm.irqchip == "split":
        return Scheme.SPLIT, "kernel-irqchip=split"
    return Scheme.IRQFD, "KVM with its irqchip in the kernel, QEMU's default"


@rule(
    "INTX009",
    Stage.EOI,
    "the IOAPIC lives in QEMU, so each acknowledge passes through it",
    "QEMU accel/kvm/kvm-all.c: kvm_resample_fd_notify() (5.1 and later); q35-4.0 had split as its default",
)
def split_irqchip(subject: Subject) -> Iterator[Seen]:
    """With kernel-irqchip=split KVM cannot resample in the kernel: it leaves to QEMU at each acknowledge of a level
    interrupt, and QEMU kicks the resample eventfd. QEMU before 5.1 did not: the line stuck, and with 4.0 (where split
    was the default of q35) guest and host hung. Two devices on one guest line are a further weak spot.
    """
    if subject.vm.irqchip == "split" and subject.function.pin is not None:
        yield Seen(
            Severity.WARNING,
            "with a split irqchip every acknowledge passes through QEMU",
            ("kernel-irqchip=split",),
            "slower; lost acknowledges with QEMU before 5.1",
            "-machine …,kernel-irqchip=on, or in libvirt: <ioapic driver='kvm'/>",
        )


@rule(
    "INTX010",
    Stage.UNMASK,
    "QEMU guesses the acknowledge from accesses to the card",
    "QEMU hw/vfio/pci.c: vfio_intx_interrupt(), vfio_intx_mmap_enable(); x-intx-mmap-timeout-ms is 1100",
)
def userspace_path(subject: Subject) -> Iterator[Seen]:
    """With x-no-kvm-intx=on QEMU injects each interrupt itself, traps the card's BARs, and takes the next access to
    them for the acknowledge. The BARs stay trapped for 1.1 s after each interrupt. It is a fallback for debugging;
    scripts that set it for every device pay for it without need.
    """
    if subject.vm.no_kvm_intx and subject.function.pin is not None:
        yield Seen(
            Severity.WARNING,
            "x-no-kvm-intx=on: each interrupt goes through QEMU and traps the BARs",
            ("vfio-pci property x-no-kvm-intx=on",),
            "slow; the BARs are trapped for 1100 ms after each interrupt",
            "leave x-no-kvm-intx out",
        )


@rule(
    "INTX012",
    Stage.ROUTE,
    "the guest has programmed the pin as edge-triggered",
    "arch/x86/kvm/ioapic.c: only level-triggered pins are resampled; hermit-os/kernel PR 2611",
)
def edge_in_guest(subject: Subject) -> Iterator[Seen]:
    """PCI INTx is level-triggered, active low. A guest that programs its IOAPIC pin (or the PIC's ELCR) as edge gets
    one interrupt: no acknowledge comes back for the level, and the host's line stays masked. The guest, or the
    ACPI tables that it was given, are to be mended.
    """
    if subject.vm.guest_trigger == "edge":
        yield Seen(
            Severity.CRITICAL,
            "the guest's interrupt pin is set to edge; INTx needs level",
            ("guest IOAPIC: trigger mode edge",),
            "one interrupt, then the host waits for an acknowledge that never comes",
            "mend the guest's interrupt set-up (level, active low)",
        )


@rule(
    "INTX028",
    Stage.INJECT,
    "KVM cannot be used",
    "QEMU hw/vfio/pci.c: vfio_intx_enable_kvm() needs kvm_irqfds_enabled()",
)
def no_kvm(subject: Subject) -> Iterator[Seen]:
    """Without /dev/kvm there is no irqfd: QEMU would emulate the guest, and inject and guess each acknowledge."""
    if subject.function.pin is not None and not subject.snapshot.kernel.kvm_device:
        yield Seen(
            Severity.WARNING,
            "there is no /dev/kvm: interrupts would go through QEMU",
            ("/dev/kvm: No such file or directory",),
            "the scheme irqfd is not to be had on this machine",
            "load kvm_intel or kvm_amd with modprobe; where that fails, switch on virtualization in the firmware setup",
        )


RULES = (split_irqchip, userspace_path, edge_in_guest, no_kvm)
