"""eventfd(2): the two descriptors that a line is made of, and how to tell one from another.

A line's trigger and its resample eventfd are always made here: close-on-exec, never blocking, never a semaphore.
Never blocking, because a write into a full counter (2**64 - 2) would otherwise stop the thread for good; never a
semaphore, because the kernel side drains the whole counter while a semaphore's reader takes one at a time.

Sources: ``fs/eventfd.c`` (``eventfd_show_fdinfo``), ``man 2 eventfd``.
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.errors import KernelError

#: What ``readlink /proc/PID/fd/N`` shows for every eventfd.
LINK = "anon_inode:[eventfd]"

_FIELD = re.compile(r"^eventfd-(count|id|semaphore):[ \t]*([0-9a-f]{1,16})$", re.MULTILINE | re.ASCII)
_LONGEST_FDINFO = 4096


@dataclass(frozen=True, slots=True)
class EventfdInfo:
    """What fdinfo says of an eventfd.

    :ivar count: the counter; with a KVM irqfd bound it is drained, but may stay at 1 after the assign.
    :ivar identity: the kernel's id of the object: equal for every dup of it, in whatever process. Kernels before 5.2
        (b556db17b0e7) do not show one: None.
    :ivar semaphore: made with EFD_SEMAPHORE; None where the kernel does not show it (6.1 does not).
    """

    count: int
    identity: int | None
    semaphore: bool | None


def create(initial: int = 0) -> int:
    """A new eventfd, close-on-exec and non-blocking. The caller closes it. :raise KernelError: EMFILE and the like."""
    try:
        return os.eventfd(initial, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise KernelError("eventfd", "a new descriptor", error.errno or 0) from error


def signal(fd: int, times: int = 1) -> None:
    """Add *times* to the counter and wake whoever waits.

    :raise KernelError: EAGAIN where the counter would pass 2**64 - 2 (nothing was added), EBADF, EINVAL.
    """
    try:
        os.eventfd_write(fd, times)
    except OSError as error:
        raise KernelError("write", "an eventfd", error.errno or 0) from error


def drain(fd: int) -> int:
    """Read the counter and set it to 0; 0 if there was nothing, without waiting. :raise KernelError: not an eventfd.

    The number says that something happened, never how often: several signals may have come as one.
    """
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise KernelError("read", "an eventfd", error.errno or 0) from error


def parse_fdinfo(text: str) -> EventfdInfo | None:
    """An eventfd's ``/proc/PID/fdinfo/N``; None for any other kind of descriptor. Pure."""
    fields = {match[1]: match[2] for match in _FIELD.finditer(text[:_LONGEST_FDINFO])}
    if "count" not in fields:
        return None
    # seq_printf's "%16llx" for the count, "%d" for the other two.
    identity = fields.get("id")
    semaphore = fields.get("semaphore")
    return EventfdInfo(
        count=int(fields["count"], 16),
        identity=int(identity) if identity and identity.isdigit() else None,
        semaphore=semaphore != "0" if semaphore is not None else None,
    )


def inspect(fd: int, *, proc: Path) -> EventfdInfo | None:
    """What this process's descriptor *fd* is: its eventfd facts, or None if it is not an eventfd.

    :param proc: the mounted procfs (``HostRoot().at("proc")``).
    :raise KernelError: the descriptor is not open, or procfs cannot be read.
    """
    try:
        text = (proc / "self/fdinfo" / str(fd)).read_text("ascii", "replace")
    except OSError as error:
        raise KernelError("read", f"fdinfo of descriptor {fd}", error.errno or 0) from error
    return parse_fdinfo(text)


def is_nonblocking(fd: int) -> bool:
    """Whether reads and writes of *fd* return instead of waiting. :raise KernelError: EBADF."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK)
    except OSError as error:
        raise KernelError("F_GETFL", f"descriptor {fd}", error.errno or 0) from error


def objection(fd: int, *, proc: Path) -> str | None:
    """Why *fd* must not become a line's trigger or resample eventfd, in words for an error message; None if it may.

    :raise KernelError: as :func:`inspect`.
    """
    info = inspect(fd, proc=proc)
    if info is None:
        return f"descriptor {fd} is not an eventfd"
    if info.semaphore:
        return f"eventfd {fd} is a semaphore (EFD_SEMAPHORE), which counts events one by one"
    if not is_nonblocking(fd):
        return f"eventfd {fd} blocks: a full counter would stop its writer for good"
    return None
