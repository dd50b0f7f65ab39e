"""Something that goes on by the clock while a test does its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ticking(tick: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call *tick* in a thread over and over while the block runs."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(every_s):
            tick()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
