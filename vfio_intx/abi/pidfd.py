"""Process descriptors: a process's identity that cannot be reused, and copies of its descriptors.

``pidfd_getfd(2)`` needs the rights of ``ptrace`` on the target (root, or the same user where Yama allows it). The
copy refers to the same open file. Keep it no longer than one question takes: while a copy of QEMU's eventfd or vfio
descriptor is open, QEMU's own ``close`` of it does not release it.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

from vfio_intx.abi.call import syscall
from vfio_intx.errors import KernelError, MissingError

#: include/uapi/asm-generic/unistd.h, the same number on every architecture.
NR_PIDFD_GETFD = 438


@contextmanager
def open_process(pid: int) -> Iterator[int]:
    """A pidfd of process *pid*, closed at the end.

    :raise MissingError: if there is no such process.
    :raise KernelError: for any other reason, with its errno.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise MissingError(f"there is no process {pid}") from error
    except OSError as error:
        raise KernelError("pidfd_open", f"process {pid}", error.errno or 0) from error
    try:
        yield pidfd
    finally:
        os.close(pidfd)


@contextmanager
def borrow(pidfd: int, fd: int, owner: str) -> Iterator[int]:
    """A copy of descriptor *fd* of the process behind *pidfd*, closed at the end whatever happens.

    :param owner: whose descriptor it is, for the message.
    :raise KernelError: EPERM without ptrace rights, EBADF if the descriptor is gone, ESRCH if the process is.
    """
    try:
        copy = syscall("pidfd_getfd", f"descriptor {fd} of {owner}", NR_PIDFD_GETFD, pidfd, fd, 0)
    except KernelError as error:
        if error.errno == errno.EPERM:
            error.hint = "run it as root, or as QEMU's user with ptrace rights (kernel.yama.ptrace_scope)"
        raise
    try:
        yield copy
    finally:
        os.close(copy)


def has_ended(pidfd: int) -> bool:
    """Whether the process behind *pidfd* has ended; never waits."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
