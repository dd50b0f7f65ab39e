"""A lock on an open file that the kernel holds, and drops when its holder dies (flock(2))."""

from __future__ import annotations

import errno
import fcntl

from vfio_intx.errors import KernelError


def try_lock(fd: int, target: str) -> bool:
    """Take the exclusive lock of an open file without waiting; whether it was free.

    The lock belongs to the open file description: it goes when the last descriptor of it is closed, SIGKILL included.

    :raise KernelError: for anything but "somebody else has it".
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise KernelError("flock", target, error.errno or 0) from error
    return True
