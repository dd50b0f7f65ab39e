"""Killing this program at a chosen moment: a forked child runs an action and dies by SIGKILL at its n-th boundary.

A boundary is the moment before and the moment after each thing that outlives the process: a write to the fake kernel,
and each system call that makes a record durable. Nothing is cleaned up in the child: that is what SIGKILL means.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from vfio_intx.deadline import Deadline
from vfio_intx.host.root import HostRoot
from vfio_intx.wiring.apply import Machine
from vfio_intx.wiring.steps import Write

#: What else than the kernel's files outlives the process.
_DURABLE = ("rename", "fsync", "unlink", "mkdir")


@contextmanager
def no_power_cut() -> Iterator[None]:
    """fsync looks at its descriptor and does not wait for the disk.

    What a killed process has written is the kernel's and stays, synced or not; only a power cut, which nothing here
    plays, could tell the two apart. The call is still made, and is still a boundary.
    """
    with mock.patch("os.fsync", os.fstat):
        yield


class _Fuse:
    def __init__(self, boundaries: int) -> None:
        self.left = boundaries
        self.inside = False

    def burn(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.inside:  # the fake kernel at work on its own files: a kernel's call is whole or has not begun
                return real(*args, **kwargs)
            self.burn()
            self.inside = True
            try:
                result = real(*args, **kwargs)
            finally:
                self.inside = False
            self.burn()
            return result

        return wrapped


@dataclass
class _Fused:
    """A machine whose every write is two boundaries."""

    machine: Machine
    fuse: _Fuse

    @property
    def root(self) -> HostRoot:
        return self.machine.root

    def may_change(self) -> bool:
        return self.machine.may_change()

    def load_module(self, name: str, deadline: Deadline) -> None:
        self.fuse.around(self.machine.load_module)(name, deadline)

    def write(self, write: Write, deadline: Deadline) -> None:
        self.fuse.around(self.machine.write)(write, deadline)


def dies_at(boundary: int, machine: Machine, action: Callable[[Machine], object]) -> bool:
    """Run *action* in a child that is killed at that boundary, counted from 0; False if it ended before it came there.

    :raise AssertionError: if the child ended by an error instead.
    """
    return dying_at(boundary, machine, action)()


def dying_at(boundary: int, machine: Machine, action: Callable[[Machine], object]) -> Callable[[], bool]:
    """As :func:`dies_at`, but the child runs on its own: what is returned waits for it, and is to be called once."""

    def child() -> None:
        fuse = _Fuse(boundary)
        for name in _DURABLE:
            setattr(os, name, fuse.around(getattr(os, name)))
        action(_Fused(machine, fuse))

    return _start(child)


def dies_after(seconds: float, machine: Machine, action: Callable[[Machine], object]) -> bool:
    """Run *action* in a child that dies, without any cleaning up, that many seconds after it began; whether it did."""

    def child() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        action(machine)

    return _start(child)()


def _start(run: Callable[[], None]) -> Callable[[], bool]:
    child = os.fork()
    if child == 0:
        # A collection would write to every object that the parent has, and so have a copy made of all its pages.
        gc.disable()
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)

    def died() -> bool:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL, -signal.SIGALRM), f"the child ended with {code}"
        return code != 0

    return died
