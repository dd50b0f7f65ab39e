"""Bringing back all that we gave away: ``restore`` for whoever does not know, at 2 a.m., which card it was.

A function that cannot come back (in use, gone, a damaged record) keeps none of the others from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from vfio_intx.errors import MissingError, WorldError
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import Machine, StuckWrite
from vfio_intx.wiring.drivers import Outcome, need_rights, plan_restore, restore
from vfio_intx.wiring.journal import Record, open_state
from vfio_intx.wiring.plan import Change

T = TypeVar("T")


def recorded(state_path: Path) -> tuple[Bdf, ...]:
    """The functions that have a record of ours, in order of address; none where there is no state directory.

    :raise WorldError: if the directory is not this user's, or another process keeps its lock.
    """
    if not state_path.exists():
        return ()
    with open_state(state_path) as state:
        return state.recorded()


def restore_all(machine: Machine, state_path: Path) -> Iterator[tuple[Bdf, Outcome | WorldError]]:
    """Restore every function that has a record, one after the other: what became of it, or why it could not.

    Behind a driver that hangs in the kernel no other is tried; a note of the error names those.

    :raise RefusedError: if this process may not change drivers.
    """
    need_rights(machine, "restore", ())
    return _each(state_path, lambda bdf: restore(machine, state_path, bdf))


def plan_restore_all(machine: Machine, state_path: Path) -> Iterator[tuple[Bdf, Change | WorldError]]:
    """The changes that :func:`restore_all` would make."""
    return _each(state_path, lambda bdf: plan_restore_of(machine, state_path, bdf))


def plan_restore_of(machine: Machine, state_path: Path, bdf: Bdf) -> Change:
    """The change that restoring one function would make, by the record on disk. :raise WorldError: as restoring it."""
    return plan_restore(machine, record_of(state_path, bdf), bdf)


def record_of(state_path: Path, bdf: Bdf) -> Record | None:
    """Our record of a function, for a dry run: None where there is none, and no directory is made.

    :raise WorldError: if it cannot be read or trusted; a dry run that guessed would print the wrong writes.
    """
    if not state_path.exists():
        return None
    with open_state(state_path) as state:
        return state.read(bdf)


@contextmanager
def naming_record(state_path: Path, bdf: Bdf) -> Iterator[None]:
    """Let the error of a card that is gone say how it is forgotten: its record would be tried for ever."""
    try:
        yield
    except MissingError as error:
        record = state_path / f"{bdf}.record"
        if record.exists():
            error.add_note(f"the record of its first driver is kept; if that card will not come back: rm {record}")
        raise


def _each(state_path: Path, act: Callable[[Bdf], T]) -> Iterator[tuple[Bdf, T | WorldError]]:
    bdfs = recorded(state_path)
    for index, bdf in enumerate(bdfs):
        try:
            with naming_record(state_path, bdf):
                result: T | WorldError = act(bdf)
        except StuckWrite as error:
            if left := ", ".join(map(str, bdfs[index + 1 :])):
                error.add_note(f"not tried: {left}")
            yield bdf, error
            return
        except WorldError as error:
            result = error
        yield bdf, result
