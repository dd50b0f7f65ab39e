"""A lab that is lost: an emulated machine may die or hang, which says nothing of the code that ran in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from vfio_intx.errors import LabLost
from vfio_intx.lab.play import Progress, play

T = TypeVar("T")

_OPENING = "LAB LOST: "

#: Tests that have no verdict because their lab was lost, by their ids.
LOST = pytest.StashKey[list[str]]()


def unless_lost(run: Callable[[], T]) -> T:
    """What *run* returns; where it loses its lab, what it returns the second time.

    :raise LabLost: if both were lost.
    """
    try:
        return run()
    except LabLost as error:
        sys.stderr.write(f"LAB LOST, once more: {error}\n")
        return run()


def result_of(scenario: str, *words: str, kernel: str | None = None) -> dict[str, Any]:
    """The result of a scenario with its *words*, on *kernel* if that is given; a lost lab is tried once more.

    :raise LabLost: if both labs were lost. :raise VfioIntxError: what the scenario ended with.
    """

    def played() -> dict[str, Any]:
        done = play(scenario, kernel, words, Progress(print))
        if done.error is not None:
            raise done.error
        return dict(done.result)

    return unless_lost(played)


def in_words(error: BaseException) -> str:
    """A loss with all that it knows, beginning with "LAB LOST"."""
    return "\n".join([f"{_OPENING}{error}", *getattr(error, "__notes__", ())])


def is_loss(report: pytest.TestReport) -> bool:
    """Whether a report tells of a loss and not of a failure."""
    return report.failed and str(report.longrepr).startswith(_OPENING)
