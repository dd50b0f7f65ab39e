"""The VMM's own thread: waits for eventfds and calls somebody for each, as QEMU's main loop does."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Mapping

from vfio_intx.abi import eventfd
from vfio_intx.abi.call import close_all
from vfio_intx.deadline import Deadline
from vfio_intx.errors import InternalError, VfioIntxError

_STOP_S = 30.0


class EventLoop:
    """A thread that drains eventfds and calls their handlers. ``wakeups`` counts how often it was woken."""

    def __init__(self, handlers: Mapping[int, Callable[[], None]]) -> None:
        self.wakeups = 0
        self._handlers = dict(handlers)
        self._stop = eventfd.create()
        self._failure: Exception | None = None
        self._poller = select.poll()
        for fd in (*self._handlers, self._stop):
            self._poller.register(fd, select.POLLIN)
        self._thread = threading.Thread(target=self._main, name="vmm", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """:raise VfioIntxError: what ended the thread early."""
        if isinstance(self._failure, VfioIntxError):
            raise self._failure
        if self._failure is not None:
            raise InternalError(f"the VMM's thread failed: {self._failure}") from self._failure

    def stop(self) -> None:
        """End the thread; harmless when done twice. :raise InternalError: it does not end."""
        if self._stop < 0:
            return
        eventfd.signal(self._stop)
        self._thread.join(Deadline.after("VMM thread to end", _STOP_S).left())
        if self._thread.is_alive():
            raise InternalError(f"the VMM's thread did not end within {_STOP_S:g} s")
        close_all(self._stop)
        self._stop = -1

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._loop()
        except Exception as error:
            self._failure = error

    def _loop(self) -> None:
        poll, handlers, read, stop = self._poller.poll, self._handlers, os.eventfd_read, self._stop
        while True:
            for fd, _ in poll():
                if fd == stop:
                    return
                # Before the handler: whoever sees what that brings about finds it counted.
                self.wakeups += 1
                try:
                    read(fd)
                except BlockingIOError:
                    # Somebody else has drained it since (a card that was reset): there is nothing to do.
                    continue
                handlers[fd]()
