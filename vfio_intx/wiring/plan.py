"""Plans: which steps lead from a function's present binding to the wanted one; pure.

One planner serves ``bind``, ``unbind`` and ``restore``, and recovery after a crash: it looks only at where a function
is and where it shall be, so a plan made again after any interruption does what is left to do and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfio_intx.names import Bdf
from vfio_intx.wiring.steps import Binding, Step, override, probe, unbind

#: The driver that gives a function to userspace.
VFIO_PCI = "vfio-pci"


@dataclass(frozen=True, slots=True)
class Change:
    """A function that shall go from one binding to another."""

    bdf: Bdf
    now: Binding
    goal: Binding

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do."""
        return self.now == self.goal


def steps_of(change: Change) -> tuple[Step, ...]:
    """The steps of one change, in order; undone in exact reverse they lead back to where it began.

    The override goes first: as long as it stands, no other driver can take the function in between. A wanted driver is
    always asked for by override, also the first one: of two drivers that match, a plain probe might pick the other.
    """
    steps: list[Step] = []
    at = change.now
    if at.driver != change.goal.driver:
        if change.goal.driver and at.override != change.goal.driver:
            steps.append(override(change.bdf, at, change.goal.driver))
            at = steps[-1].after
        if at.driver:
            steps.append(unbind(change.bdf, at))
            at = steps[-1].after
        if change.goal.driver:
            steps.append(probe(change.bdf, at))
            at = steps[-1].after
    if at.override != change.goal.override:
        steps.append(override(change.bdf, at, change.goal.override))
    return tuple(steps)


def goal_of_bind() -> Binding:
    """A function given away: vfio-pci by override, so that nothing else takes it when it is probed again."""
    return Binding(VFIO_PCI, VFIO_PCI)
