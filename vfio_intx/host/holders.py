"""Which processes hold a VFIO device open: as long as one does, unbinding it would block in the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from vfio_intx.host.root import HostRoot, list_names, read_text
from vfio_intx.names import Bdf, IommuGroup, escape


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
    return _holders(root, [f"dev/vfio/{group}"])


def device_holders(root: HostRoot, bdf: Bdf, group: IommuGroup) -> tuple[Holder, ...]:
    """The processes that have a function open, by its group or, with iommufd, by ``/dev/vfio/devices/vfioN``."""
    names = list_names(root.pci_device(bdf) / "vfio-dev", root=root).get(())
    return _holders(root, [f"dev/vfio/{group}", *(f"dev/vfio/devices/{name}" for name in names)])


def _holders(root: HostRoot, files: Iterable[str]) -> tuple[Holder, ...]:
    wanted = frozenset(path for file in files for path in (f"/{file}", str(root.at(file))))
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
