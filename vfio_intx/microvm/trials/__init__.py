"""The selftest: one trial for each thing that a passed-through line relies on, on this host's KVM.

Capabilities lie (a split irqchip says that it can resample), so nothing here is believed that was not tried.
"""

from __future__ import annotations

from collections.abc import Iterator

from vfio_intx.errors import MissingError
from vfio_intx.microvm.trials import capabilities, churn, irqfd_errors, lines, races
from vfio_intx.microvm.trials.row import Ground, Row, Verdict

__all__ = ["Ground", "Row", "Verdict", "is_usable", "run_trials"]


def run_trials(ground: Ground) -> Iterator[Row]:
    """Every row in its order, as its trial ends. A host without an in-kernel irqchip gets the first rows only.

    A trial that cannot be carried out is a failed row with the reason, never an exception.

    :raise BusyError: another hypervisor holds the CPU, so that not even a VM can be made.
    """
    yield from capabilities.rows(ground)
    try:
        ground.need_irqchip()
    except MissingError:
        return
    # First of all, because it forks: no thread of ours may be running yet.
    yield from irqfd_errors.rows(ground)
    yield from races.rows(ground)
    yield from lines.rows(ground)
    yield from churn.rows(ground)


def is_usable(rows: list[Row]) -> bool:
    """Whether the host can carry a line: no required row failed, and the trials that prove it were reached."""
    required = [row for row in rows if row.required]
    proven = any(row.name == races.PROOF for row in required)
    return proven and all(row.verdict is not Verdict.FAIL for row in required)
