"""Killing this program at a chosen moment: a forked child runs an action and dies by SIGKILL at its n-th boundary.

A boundary is the moment before and the moment after each thing that outlives the process: a write to the fake kernel,
and each system call that makes a record durable. Nothing is cleaned up in the child: that is what SIGKILL means.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from tests.fakes.kernel import FakeKernel

#: What else than the kernel's files outlives the process.
_DURABLE = ("rename", "fsync", "unlink", "mkdir")


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


def dies_at(boundary: int, kernel: FakeKernel, action: Callable[[], object]) -> bool:
    """Run *action* in a child that is killed at that boundary, counted from 0; False if it ended before it came there.

    :raise AssertionError: if the child ended by an error instead.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            fuse = _Fuse(boundary)
            for name in _DURABLE:
                setattr(os, name, fuse.around(getattr(os, name)))
            kernel.write = fuse.around(kernel.write)  # type: ignore[method-assign]
            action()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the child ended with {code}"
    return code != 0
