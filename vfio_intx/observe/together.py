"""Several waits at once: one peer that does not answer delays nobody else's answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class _Job(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self.results: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.results.append(self._work())
        except BaseException as error:
            self.error = error


def together(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each of *works* returns, in their order; each runs in a thread of its own.

    The threads are daemons: Ctrl-C ends the program at once, whatever a peer is waited for. What one raises is
    raised here when all have ended.
    """
    jobs = [_Job(work) for work in works]
    threads = [threading.Thread(target=job.run, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in jobs:
        if job.error is not None:
            raise job.error
    return [job.results[0] for job in jobs]
