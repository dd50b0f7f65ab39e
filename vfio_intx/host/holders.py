"""Which processes hold a VFIO device open: as long as one does, unbinding it would block in the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from vfio_intx.host.root import HostRoot, list_names, read_text
from vfio_intx.names import Bdf, IommuGroup, escape


class Holder(NamedTuple):
    """A process with an open descriptor; *command* is its ``comm``, control bytes escaped."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def group_holders(root: HostRoot, group: IommuGroup) -> tuple[Holder, ...]:
    """The processes that have ``/dev/vfio/GROUP`` open; of other users' processes only root sees the descriptors.

    A process that dies while it is looked at is left out.
    """
    return _holders(root, [f"dev/vfio/{group}"])


def device_holders(root: HostRoot, bdf: Bdf, group: IommuGroup) -> tuple[Holder, ...]:
    """The processes that have a function open, by its group or, with iommufd, by ``/dev/vfio/devices/vfioN``."""
    names = list_names(f"{root.function(bdf)}/vfio-dev", root=root).get(())
    return _holders(root, [f"dev/vfio/{group}", *(f"dev/vfio/devices/{name}" for name in names)])


def _holders(root: HostRoot, files: Iterable[str]) -> tuple[Holder, ...]:
    wanted = frozenset(path for file in files for path in (f"/{file}", root.file(file)))
    pids = [name for name in os.listdir(root.file("proc")) if name.isascii() and name.isdigit()]
    return tuple(_holder(root, int(pid)) for pid in sorted(pids, key=int) if _holds(root, pid, wanted))


def _holds(root: HostRoot, pid: str, wanted: frozenset[str]) -> bool:
    try:
        entries = os.listdir(root.file("proc", pid, "fd"))
    except OSError:
        return False
    return any(_target(root, pid, fd) in wanted for fd in entries)


def _target(root: HostRoot, pid: str, fd: str) -> str | None:
    try:
        return os.readlink(root.file("proc", pid, "fd", fd))
    except OSError:
        return None


def _holder(root: HostRoot, pid: int) -> Holder:
    return Holder(pid, escape(read_text(root.file("proc", str(pid), "comm"), root=root).get("?"))[:64])
