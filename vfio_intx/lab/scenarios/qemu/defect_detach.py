"""A copy of the unmask eventfd in other hands: stock QEMU drops to trap at the next route change."""

from __future__ import annotations

from vfio_intx.lab import kernels
from vfio_intx.lab.qemu_defects import FIRST, before_and_after, held_eventfd
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import LabSpec

SPEC = LabSpec(kernels.DEFAULT, (FIRST,))
DEADLINE_S = 600.0


def inside(context: Context) -> dict[str, object]:
    """On the stock build, then on the patched one."""
    return before_and_after(context, held_eventfd, SPEC.cards)
