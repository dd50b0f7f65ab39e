"""What a QEMU can do, asked of the QEMU itself; never guessed from its version."""

from __future__ import annotations

import msgspec

from vfio_intx.errors import MissingError, PeerRefused
from vfio_intx.qemu import replies
from vfio_intx.qemu.irqchip import Controllers, IrqchipKind, IrqCounts, parse_controllers, parse_counts
from vfio_intx.qemu.monitor import Monitor, ask, human

#: The property by which stock QEMU chooses between KVM's irqfd and its own handling of an INTx line.
NO_KVM_INTX = "x-no-kvm-intx"


class Features(msgspec.Struct, frozen=True):
    """The commands and the properties of ``vfio-pci`` that a QEMU has.

    :ivar device_properties: empty where this QEMU has no ``vfio-pci`` device at all.
    """

    commands: frozenset[str]
    device_properties: frozenset[str]

    @property
    def has_vfio(self) -> bool:
        """Whether this QEMU was built with ``vfio-pci``."""
        return "host" in self.device_properties

    @property
    def can_choose_scheme(self) -> bool:
        """Whether the scheme can be chosen when the device is added."""
        return NO_KVM_INTX in self.device_properties


def probe(monitor: Monitor) -> Features:
    """Ask a QEMU what it can do. :raise PeerError: as :meth:`~vfio_intx.qemu.monitor.Monitor.execute` does."""
    commands = ask(monitor, "query-commands", replies.Commands)
    try:
        properties = ask(monitor, "device-list-properties", replies.Properties, {"typename": "vfio-pci"})
    except PeerRefused:
        properties = []
    return Features(frozenset(one.name for one in commands), frozenset(one.name for one in properties))


def require_attach(features: Features, monitor: Monitor) -> None:
    """Refuse a QEMU that cannot take a device. :raise MissingError: saying what it lacks."""
    if not features.has_vfio:
        raise MissingError(
            f"the QEMU behind {monitor.name} has no vfio-pci device",
            hint="use a QEMU built with VFIO: Debian's qemu-system-x86 has it",
        )
    lacking = {"device_add", "device_del", "query-pci", "qom-list", "qom-get"} - features.commands
    if lacking:
        raise MissingError(f"the QEMU behind {monitor.name} lacks the commands {', '.join(sorted(lacking))}")


def read_controllers(monitor: Monitor) -> Controllers:
    """``info pic``. :raise PeerError: as ``execute`` does; :raise PeerGarbage: for a text that is none."""
    return parse_controllers(human(monitor, "info pic"), monitor.name)


def read_counts(monitor: Monitor) -> IrqCounts:
    """``info irq``. :raise PeerError: as ``execute`` does."""
    return parse_counts(human(monitor, "info irq"), monitor.name)


def read_irqchip_kind(monitor: Monitor) -> IrqchipKind:
    """Where this VM's interrupt controllers live.

    Two witnesses of QEMU: the IOAPIC's type (``kvm-ioapic`` or ``ioapic``, by the titles of ``info irq``) and the
    LAPIC's (``kvm-apic`` or ``apic``, by QOM). Only both together tell ``split`` from all-in-userspace.
    """
    if read_counts(monitor).ioapic_in_kernel:
        return IrqchipKind.KERNEL
    cpus = ask(monitor, "query-cpus-fast", replies.Cpus)
    parts = ask(monitor, "qom-list", replies.Properties, {"path": cpus[0].qom_path}) if cpus else []
    lapic = next((one.child_type for one in parts if one.name == "lapic"), None)
    return IrqchipKind.SPLIT if lapic == "kvm-apic" else IrqchipKind.USERSPACE
