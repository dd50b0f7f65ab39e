"""A named point in monotonic time: the only clock of this program that waits are measured against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from vfio_intx.errors import UsageError


class Deadline(NamedTuple):
    """A moment on the monotonic clock, with the name and budget that an error about it prints.

    ``expires`` is in seconds of :func:`time.monotonic`; ``budget_s`` is what was allowed in all.
    """

    name: str
    budget_s: float
    expires: float

    @classmethod
    def after(cls, name: str, seconds: float) -> Deadline:
        """A deadline that many seconds from now. :raise UsageError: if *seconds* is not a positive finite number."""
        if not 0 < seconds < 1e9:
            raise UsageError(f"a deadline must be a positive number of seconds, not {seconds!r}")
        return cls(name, seconds, time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.expires - time.monotonic())

    def passed(self) -> bool:
        """Whether the moment has come."""
        return time.monotonic() >= self.expires

    def poll(self, ready: Callable[[], bool], *, first_s: float = 0.001, most_s: float = 0.1) -> bool:
        """Ask *ready* with growing pauses until it is true or the deadline passes; its last answer is the result.

        *ready* is asked at least once, and once more after the last pause, so a slow machine cannot miss it.
        """
        pause = first_s
        while not ready():
            if self.passed():
                return False
            time.sleep(min(pause, self.left()))
            pause = min(pause * 2, most_s)
        return True
