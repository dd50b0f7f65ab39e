"""Split irqchip, two cards on one GSI: on stock QEMU only the one plugged last is unmasked again."""

from __future__ import annotations

from vfio_intx.lab import kernels
from vfio_intx.lab.qemu_defects import FIRST, SECOND, before_and_after, shared_gsi
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import LabSpec

SPEC = LabSpec(kernels.DEFAULT, (FIRST, SECOND))
DEADLINE_S = 600.0


def inside(context: Context) -> dict[str, object]:
    """On the stock build, then on the patched one."""
    return before_and_after(context, shared_gsi, SPEC.cards)
