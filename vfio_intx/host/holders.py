"""Which processes hold a VFIO group open: as long as one does, unbinding its devices would block in the kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vfio_intx.host.root import HostRoot, read_text
from vfio_intx.names import IommuGroup, escape


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with an open descriptor; *command* is its ``comm``, control bytes escaped."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def group_holders(root: HostRoot, group: IommuGroup) -> tuple[Holder, ...]:
    """The processes that have ``/dev/vfio/GROUP`` open; of other users' processes only root sees the descriptors.

    A process that dies while it is looked at is left out.
    """
    wanted = frozenset({f"/dev/vfio/{group}", str(root.at("dev/vfio", str(group)))})
    pids = [entry.name for entry in os.scandir(root.at("proc")) if entry.name.isascii() and entry.name.isdigit()]
    return tuple(_holder(root, int(pid)) for pid in sorted(pids, key=int) if _holds(root, pid, wanted))


def _holds(root: HostRoot, pid: str, wanted: frozenset[str]) -> bool:
    try:
        entries = [entry.name for entry in os.scandir(root.at("proc", pid, "fd"))]
    except OSError:
        return False
    return any(_target(root, pid, fd) in wanted for fd in entries)


def _target(root: HostRoot, pid: str, fd: str) -> str | None:
    try:
        return str(root.at("proc", pid, "fd", fd).readlink())
    except OSError:
        return None


def _holder(root: HostRoot, pid: int) -> Holder:
    return Holder(pid, escape(read_text(root.at("proc", str(pid), "comm"), root=root).get("?"))[:64])
