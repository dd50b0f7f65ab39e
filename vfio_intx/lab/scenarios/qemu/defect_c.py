"""q35 chip configuration: stock QEMU tells vfio-pci of a route before it has changed."""

from __future__ import annotations

from vfio_intx.lab import kernels
from vfio_intx.lab.qemu_defects import FIRST, before_and_after, stale_route
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import LabSpec

SPEC = LabSpec(kernels.DEFAULT, (FIRST,))
DEADLINE_S = 600.0


def inside(context: Context) -> dict[str, object]:
    """On the stock build, then on the patched one."""
    return before_and_after(context, stale_route, SPEC.cards)
