"""All defects of stock QEMU that the series mends, before and after, in one boot; the first failure is told last."""

from __future__ import annotations

from vfio_intx.errors import VfioIntxError
from vfio_intx.lab import kernels
from vfio_intx.lab.qemu_defects import (
    FIRST,
    SECOND,
    before_and_after,
    held_eventfd,
    masked_pin,
    mmaps_left_off,
    shared_gsi,
    stale_route,
)
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import LabSpec

SPEC = LabSpec(kernels.DEFAULT, (FIRST, SECOND))
DEADLINE_S = 1500.0

_EXPERIMENTS = {"a": shared_gsi, "b": masked_pin, "c": stale_route, "d": mmaps_left_off, "detach": held_eventfd}


def inside(context: Context) -> dict[str, object]:
    """One after the other, also after one that failed."""
    results: dict[str, object] = {"schema": "vfio-intx/lab-defects/1"}
    failed: VfioIntxError | None = None
    for name, experiment in _EXPERIMENTS.items():
        context.say(f"defect {name}")
        try:
            results[name] = before_and_after(context, experiment, SPEC.cards)
        except VfioIntxError as error:
            context.say(f"defect {name}: {error}")
            failed = error
    if failed is not None:
        raise failed
    return results
