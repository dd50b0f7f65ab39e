"""Steps with an undo: run in order, taken back in exact reverse, whatever goes wrong on the way.

These are the steps of one process's own descriptors, which the kernel takes back when the process dies. Changes that
outlive us need a journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vfio_intx.errors import BusyError, KernelError, RefusedError

#: After one of these the step is known not to have happened. After anything else (a peer that did not answer, Ctrl-C
#: between the call and its return) it may have, and is undone as well.
_CERTAIN = (KernelError, BusyError, RefusedError)


@dataclass(frozen=True, slots=True)
class Step:
    """One change. ``name`` is a word for errors and tests, ``does`` a sentence for ``--dry-run`` and the log.

    ``do`` raises if and only if the change did not happen, or may not have; ``undo`` can stand being called for a
    change that did not happen.
    """

    name: str
    does: str
    do: Callable[[], None]
    undo: Callable[[], None]


class Wired:
    """Steps that have been done. :meth:`unwire` takes them back; as a context manager, at the end of the block."""

    def __init__(self, done: Sequence[Step]) -> None:
        self._done = list(done)

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps that stand, in the order they were done."""
        return tuple(step.name for step in self._done)

    def unwire(self) -> None:
        """Undo every step that stands, last first; once only, a second call does nothing.

        A step whose undo fails does not keep the others from being undone.

        :raise BaseException: the first that an undo raised, the others as notes on it, once all have been tried.
        """
        done, self._done = self._done, []
        failures = _undo(done)
        if failures:
            first, *others = failures
            for other in others:
                first.add_note(str(other))
            raise first

    def __enter__(self) -> Wired:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.unwire()


def perform(steps: Sequence[Step]) -> Wired:
    """Do all the steps, or none.

    :raise BaseException: what a step raised, the step's name as a note on it. Those before it have been undone, and
        the step itself where it may have happened; an undo that failed in turn is a further note.
    """
    done: list[Step] = []
    try:
        for step in steps:
            # Before it is done: Ctrl-C can come at any point, also between the call's return and the next line.
            done.append(step)
            step.do()
    except BaseException as failure:
        if done:
            failure.add_note(f"at the step {done[-1].name!r} of: {', '.join(each.name for each in steps)}")
        if isinstance(failure, _CERTAIN):
            done.pop()
        for trouble in _undo(done):
            failure.add_note(f"while undoing: {trouble}")
        raise
    return Wired(done)


def _undo(done: Sequence[Step]) -> list[BaseException]:
    failures: list[BaseException] = []
    for step in reversed(done):
        try:
            step.undo()
        except BaseException as failure:  # an interrupted undo must not leave the rest standing
            failure.add_note(f"at the undo of {step.name!r}")
            failures.append(failure)
    return failures
