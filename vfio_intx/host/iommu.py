"""IOMMU groups: what has to be given away together, and which driver leaves a group usable by vfio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vfio_intx.chain.fact import Fact
from vfio_intx.host.pci import NO_GROUP, PciFunction
from vfio_intx.host.root import HostRoot, list_names
from vfio_intx.names import Bdf, IommuGroup

#: Drivers that do no DMA of their own on a member's behalf (``driver_managed_dma`` in include/linux/pci.h), so that a
#: group with them stays viable: drivers/pci/pcie/portdrv.c, drivers/pci/pci-stub.c, drivers/vfio/pci/*.
_HARMLESS_DRIVERS = frozenset({"", "pcieport", "pci-stub"})
#: The drivers in drivers/vfio/pci that a function is given away with.
_VFIO_DRIVERS = frozenset(
    {"vfio-pci", "mlx5_vfio_pci", "hisi_acc_vfio_pci", "pds_vfio_pci", "virtio_vfio_pci", "nvgrace_gpu_vfio_pci",
     "xe-vfio-pci", "qat_vfio_pci"}
)  # fmt: skip

#: What helps where no IOMMU is in use. AMD's is used whenever the firmware offers it (drivers/iommu/amd/init.c);
#: Intel's waits for the word, unless the kernel was built with CONFIG_INTEL_IOMMU_DEFAULT_ON.
SWITCH_ON = "switch on VT-d or AMD-Vi in the firmware setup; with an Intel CPU boot with intel_iommu=on, too"


class Group(NamedTuple):
    """One IOMMU group with the PCI functions that are in it."""

    number: IommuGroup
    members: tuple[Bdf, ...]


class IommuFacts(NamedTuple):
    """What sysfs tells of the IOMMUs.

    :ivar units: the names under ``/sys/class/iommu``; none means that no IOMMU is in use.
    """

    units: Fact[tuple[str, ...]]
    groups: Mapping[IommuGroup, Group]

    @property
    def present(self) -> bool:
        """Whether devices are behind an IOMMU at all."""
        return bool(self.groups)


def read_iommu(root: HostRoot, functions: Iterable[PciFunction]) -> IommuFacts:
    """The groups, gathered from what each function's own ``iommu_group`` link said."""
    members: dict[IommuGroup, list[Bdf]] = {}
    for function in functions:
        if function.group.value is not None and function.group.value != NO_GROUP:
            members.setdefault(function.group.value, []).append(function.bdf)
    groups = {number: Group(number, tuple(sorted(bdfs))) for number, bdfs in members.items()}
    return IommuFacts(list_names(root.file("sys/class/iommu"), root=root), groups)


def is_vfio_driver(driver: str) -> bool:
    """Whether that driver gives a function to userspace through VFIO."""
    return driver in _VFIO_DRIVERS


def leaves_group_viable(driver: str) -> bool:
    """Whether a group stays usable by vfio while one of its members has that driver (or none)."""
    return driver in _HARMLESS_DRIVERS or is_vfio_driver(driver)


def blockers(
    group: Group, functions: Mapping[Bdf, PciFunction], *, apart_from: Iterable[Bdf] = ()
) -> tuple[PciFunction, ...]:
    """The members whose driver keeps vfio from opening the group, *apart_from* those that will be given away too.

    One whose driver could not be read is among them: nobody can say that it does not.
    """
    going = frozenset(apart_from)
    others = (functions[bdf] for bdf in group.members if bdf in functions and bdf not in going)
    return tuple(other for other in others if other.driver.value is None or not leaves_group_viable(other.driver.value))
