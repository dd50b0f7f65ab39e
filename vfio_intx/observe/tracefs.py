"""Where tracefs is, whose its instances are, and how one is taken away.

A tracefs instance outlives its maker. So its name is the record of its owner: ``vfio-intx-PID-START-NAMESPACE-N``, with
the process's start time (clock ticks since boot) and its pid namespace, made in the one step that makes the instance.
The next run removes those whose owner no longer lives (:func:`sweep`). A second guard is the kernel's: an instance that
somebody has open cannot be removed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from pathlib import Path

from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, MissingError
from vfio_intx.host.root import HostRoot, read_text

#: The clock of every instance of ours: the same as :func:`time.monotonic_ns`, so that a moment of our own can be
#: compared with an event's, and one clock for all CPUs, unlike the default ``local``.
CLOCK = "mono"

_NAME = re.compile(r"vfio-intx-([1-9][0-9]{0,9})-([0-9]{1,20})-([0-9]{1,20})-([0-9]{1,10})", re.ASCII)
_REMOVE_S = 5.0
_serial = itertools.count()


def new_name(root: HostRoot) -> str:
    """A name for an instance of this process that no other has."""
    pid = os.getpid()
    return f"vfio-intx-{pid}-{read_start(root, pid) or 0}-{read_namespace(root)}-{next(_serial)}"


def read_start(root: HostRoot, pid: int) -> int | None:
    """When process *pid* started, in clock ticks since boot; None if there is none, or only its exit status is left."""
    stat = read_text(root.at("proc", str(pid), "stat"), root=root).value
    # The second field is the command in parentheses, and may itself hold blanks and parentheses.
    fields = stat.rpartition(")")[2].split() if stat else []
    if len(fields) < 20 or not fields[19].isdigit():
        return None
    # The state is that of the first thread, which may end before the others.
    is_over = fields[0] in ("Z", "X") and fields[17] in ("0", "1")
    return None if is_over else int(fields[19])


def read_namespace(root: HostRoot) -> int:
    """The inode of our pid namespace, 0 where it cannot be seen."""
    try:
        return root.at("proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def find_tracefs(root: HostRoot) -> Path:
    """Where tracefs is mounted. :raise MissingError: nowhere. :raise KernelError: we may not look."""
    for parts in ("sys/kernel/tracing", "sys/kernel/debug/tracing"):
        place = root.at(parts)
        try:
            if (place / "instances").is_dir():
                return place
        except PermissionError as error:
            raise KernelError(
                "open", f"/{parts}", error.errno or 0, hint="tracing needs root: run with sudo"
            ) from error
    if os.geteuid() != 0:
        raise KernelError("open", "/sys/kernel/tracing", errno.EACCES, hint="tracing needs root: run with sudo")
    raise MissingError(
        "tracefs is not mounted", hint="mount -t tracefs nodev /sys/kernel/tracing (a kernel with CONFIG_FTRACE has it)"
    )


def sweep(root: HostRoot) -> list[str]:
    """Remove the instances of ours whose owner no longer lives; their names. Those that will not go stay, silently.

    An instance of another pid namespace is left alone: whether its owner lives cannot be seen from here.
    """
    instances = find_tracefs(root) / "instances"
    here = read_namespace(root)
    swept = []
    for name in sorted(instance.name for instance in instances.iterdir()):
        match = _NAME.fullmatch(name)
        if match is None or int(match[3]) != here or read_start(root, int(match[1])) == int(match[2]):
            continue
        with contextlib.suppress(OSError):
            remove(instances / name)
            swept.append(name)
    return swept


def put(path: Path, text: str) -> None:
    """Write to a file that is there; never make one. :raise OSError: what the kernel says."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)


def remove(instance: Path) -> None:
    """Switch everything off, then rmdir. :raise OSError: EBUSY while somebody holds it open past the deadline."""
    for file in ("tracing_on", "events/enable"):
        with contextlib.suppress(FileNotFoundError):
            put(instance / file, "0")
    deadline = Deadline.after("tracefs instance removed", _REMOVE_S)

    def gone() -> bool:
        try:
            instance.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            # A reader in another thread of the kernel (a splice, an event being switched off) holds it for a moment.
            if error.errno == errno.EBUSY and not deadline.passed():
                return False
            raise
        return True

    deadline.poll(gone)


def check_clock(text: str) -> None:
    """Look for our clock in a ``trace_clock`` file. :raise MissingError: this kernel does not offer it."""
    offered = text.replace("[", "").replace("]", "").split()
    if CLOCK not in offered:
        raise MissingError(
            f"this kernel does not offer the trace clock {CLOCK}, only {', '.join(offered)}",
            hint="times of several CPUs cannot be compared without it; use a kernel from 4.0 on",
        )


def lockdown(root: HostRoot) -> str | None:
    """The kernel's lockdown mode if it forbids tracing, else None."""
    modes = read_text(root.at("sys/kernel/security/lockdown"), root=root).get("")
    return "confidentiality" if "[confidentiality]" in modes else None
