"""Rules about the host around the card: IOMMU, group, what the host does with it, who claims it, the kernel's age."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vfio_intx.chain.finding import Severity
from vfio_intx.chain.stage import Stage
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.rules.rule import Seen, rule
from vfio_intx.diagnose.subject import Subject
from vfio_intx.host.iommu import SWITCH_ON, blockers, is_vfio_driver
from vfio_intx.wiring.refusals import UNSAFE_UNBIND, refusals, release_command


class Fix(NamedTuple):
    """A fix and the first stable releases that have it: *mainline* for newer branches, *stable* by (major, minor)."""

    commit: str
    mainline: tuple[int, int]
    stable: dict[tuple[int, int], int]

    def missing_in(self, release: tuple[int, int, int]) -> bool:
        """Whether a kernel of that stable release lacks it."""
        if release[:2] >= self.mainline:
            return False
        first = self.stable.get(release[:2])
        return first is None or release[2] < first


_HARDENING = Fix(
    'Linux kernel commit 18c198c96a81 "vfio/pci: Create persistent INTx handler" (in v6.9)',
    (6, 9),
    {(5, 4): 274, (5, 10): 215, (5, 15): 154, (6, 1): 84, (6, 6): 24, (6, 7): 12, (6, 8): 3},
)
_RESAMPLE_ON_UNMASK = Fix(
    'Linux kernel commit fef8f2b90edb "KVM: x86/ioapic: Resample the pending state of an IRQ when unmasking" (in v6.4)',
    (6, 4),
    {},
)
_UNLAZY = Fix(
    'Linux kernel commit 8b9f128947dd "vfio/pci: Fix INTx handling on legacy non-PCI 2.3 devices" (in v6.18)',
    (6, 18),
    {(6, 12): 58},
)


def _kernel(subject: Subject) -> str:
    return f"{subject.snapshot.kernel.version.source}: {'.'.join(map(str, subject.snapshot.kernel.stable or ()))}"


@rule(
    "INTX008",
    Stage.UNMASK,
    "on this kernel a card that cannot mask itself stops after one interrupt",
    _UNLAZY.commit,
)
def one_shot_stall(subject: Subject) -> Iterator[Seen]:
    """For a card that cannot mask itself vfio disables the host line at each interrupt. Kernels before the fix do that
    lazily: the line stays open in hardware until the next interrupt comes, and that one is lost when the line is
    enabled again. The count stops at one. MSI, if the card has it, avoids this.
    """
    release = subject.snapshot.kernel.stable
    if subject.verdict.masking is Masking.EXCLUSIVE and release is not None and _UNLAZY.missing_in(release):
        yield Seen(
            Severity.WARNING,
            "this kernel may lose the card's second interrupt and then all others",
            (_kernel(subject), f"{subject.verdict.source}: {subject.verdict.why}"),
            "one interrupt, then silence",
            "upgrade the kernel to 6.18, or 6.12.58 and later of its branch",
        )


@rule(
    "INTX011",
    Stage.RESAMPLE,
    "on this kernel threaded guest handlers see extra interrupts",
    _RESAMPLE_ON_UNMASK.commit,
)
def extra_interrupts(subject: Subject) -> Iterator[Seen]:
    """A guest driver with a threaded (oneshot) handler masks the pin in the IOAPIC, acknowledges, and only later quiets
    the card. Older KVM then injects the stale level when the pin is unmasked: bogus interrupts, a flooded guest log,
    suspend aborted. Harmless for drivers that do not thread their handler.
    """
    release = subject.snapshot.kernel.stable
    if subject.function.pin is not None and release is not None and _RESAMPLE_ON_UNMASK.missing_in(release):
        yield Seen(
            Severity.OK,
            "guest drivers with threaded handlers may see bogus extra interrupts",
            (_kernel(subject),),
            "noise in the guest, no loss",
            "upgrade the kernel to 6.4 or later if it hurts",
        )


@rule("INTX018", Stage.TRIGGER, "this kernel lacks the INTx hardening of 2024", _HARDENING.commit)
def old_hardening(subject: Subject) -> Iterator[Seen]:
    """Before the fixes of March 2024 a guest or QEMU could race the kernel's INTx set-up: a NULL eventfd
    (CVE-2024-26812), masking without a lock (CVE-2024-26810), and an exclusive line whose disable depth was counted
    twice, so that it stayed dead until reboot (CVE-2024-27437).
    """
    release = subject.snapshot.kernel.stable
    if subject.function.pin is not None and release is not None and _HARDENING.missing_in(release):
        yield Seen(
            Severity.WARNING,
            "this kernel lacks the INTx fixes of 2024 (CVE-2024-26810, -26812, -27437)",
            (_kernel(subject),),
            "races around enabling INTx can crash the host or leave the line dead",
            "upgrade the kernel to a supported stable release",
        )


@rule(
    "INTX015",
    Stage.HOST_IRQ,
    "its driver is unsafe to unbind",
    "report of a host oops in request_threaded_irq() after hot-unbinding radeon; the driver's own remove function",
)
def unsafe_unbind(subject: Subject) -> Iterator[Seen]:
    """Some drivers leave the kernel damaged, or hang in it, when a running device is taken from them. Such a card has
    to be on vfio-pci before its driver loads: by vfio-intx persist, by driver_override from an early udev rule, or by
    vfio-pci.ids on the kernel command line.
    """
    if subject.driver in UNSAFE_UNBIND:
        yield Seen(
            Severity.CRITICAL,
            f"its driver {subject.driver} is unsafe to unbind: {UNSAFE_UNBIND[subject.driver].why}",
            (f"{subject.function.driver.source}: {subject.driver}", UNSAFE_UNBIND[subject.driver].source),
            "the host may crash now or at the next start of a VM",
            f"vfio-intx persist {subject.name} && reboot",
        )


@rule(
    "INTX024",
    Stage.DEVICE,
    "there is no usable IOMMU group",
    "drivers/vfio/group.c: vfio_group_find_or_alloc(); drivers/iommu/iommu.c: iommu_group_get()",
)
def no_group(subject: Subject) -> Iterator[Seen]:
    """vfio-pci takes a function only if an IOMMU stands between it and memory. Without VT-d or AMD-Vi switched on in
    the firmware and in the kernel there is none.
    """
    group = subject.function.group
    if not group.is_known:
        yield Seen(
            Severity.UNKNOWN,
            "its IOMMU group could not be read",
            (f"{group.source}: {group.error}",),
            "whether vfio-pci would take it is unknown",
        )
    elif subject.group is None and not subject.function.is_bridge:
        units = subject.snapshot.iommu.units
        yield Seen(
            Severity.CRITICAL,
            "it is in no IOMMU group",
            (f"{subject.function.group.source}: none", f"{units.source}: {', '.join(units.get(())) or 'none'}"),
            "vfio-pci would not take it",
            SWITCH_ON,
        )


@rule(
    "INTX025",
    Stage.DEVICE,
    "others in its IOMMU group stay with the host",
    "drivers/iommu/iommu.c: iommu_device_use_default_domain(); include/linux/pci.h: driver_managed_dma",
)
def group_not_viable(subject: Subject) -> Iterator[Seen]:
    """The functions of a group cannot be kept apart by the IOMMU, so they go to one guest together, or not at all. A
    member with a driver of the host blocks the group. A bridge with pcieport, or without a driver, does not; one with
    another driver (shpchp) does, and vfio-pci takes no bridges: that driver has to let go of it.
    """
    group = subject.group
    others = blockers(group, subject.snapshot.functions, apart_from=(subject.function.bdf,)) if group else ()
    if group is None or not others:
        return
    unread = [other for other in others if not other.driver.is_known]
    if len(unread) == len(others):
        yield Seen(
            Severity.UNKNOWN,
            f"whether its IOMMU group {group.number} is viable is unknown: a driver could not be read",
            tuple(f"{other.driver.source}: {other.driver.error}" for other in unread),
            "a member that has a driver of the host would block the group",
        )
        return
    names = ", ".join(f"{other.bdf} ({other.driver.get('?')})" for other in others)
    yield Seen(
        Severity.CRITICAL,
        f"its IOMMU group {group.number} is not viable: {names} would stay with the host",
        tuple(
            f"/sys/kernel/iommu_groups/{group.number}/devices/{other.bdf}: {other.driver.get('?')}" for other in others
        ),
        "QEMU would fail: group N is not viable",
        " && ".join(release_command(other, subject.snapshot) for other in others if other.is_bridge)
        or f"vfio-intx bind --group {subject.name}",
    )


@rule(
    "INTX026",
    Stage.DEVICE,
    "the host is using it",
    "the files named in the evidence",
)
def in_use(subject: Subject) -> Iterator[Seen]:
    """Taking this function away would cut the host off from something that it uses now: its default route, a mounted
    file system, swap, an array or pool that is active, the console, the display it booted with or that a program draws
    on, virtual functions that it carries. vfio-intx bind refuses that without --force.
    """
    if is_vfio_driver(subject.driver) or subject.driver in UNSAFE_UNBIND:
        return
    for reason in refusals(subject.function, subject.snapshot):
        yield Seen(
            Severity.CRITICAL,
            f"it {reason.text}",
            (f"{reason.source}: {reason.text}",),
            "bind refuses it without --force",
            reason.advice,
        )


@rule(
    "INTX027",
    Stage.DEVICE,
    "somebody else's configuration names it",
    "each tool's own documentation: driverctl(8), libvirt's domain XML, Proxmox's qm.conf(5), modprobe.d(5)",
)
def claimed(subject: Subject) -> Iterator[Seen]:
    """Another tool lays claim to this function. Two owners undo each other's work: libvirt with managed='yes' rebinds
    it when its domain stops, driverctl at boot. A claim by ids (modprobe.d, vfio-pci.ids) means every card of that
    kind, twins of this one too. Nothing of theirs is ever changed here.
    """
    for claim in subject.snapshot.claims.get(subject.function.bdf, ()):
        if claim.owner == "vfio-intx":
            continue
        yield Seen(
            Severity.WARNING,
            f"{claim.owner} claims it: {claim.text}" + (" (by ids: twins too)" if claim.by_ids else ""),
            (f"{claim.source}: {claim.text}",),
            "two owners undo each other's work",
        )


RULES = (
    one_shot_stall,
    extra_interrupts,
    old_hardening,
    unsafe_unbind,
    no_group,
    group_not_viable,
    in_use,
    claimed,
)
