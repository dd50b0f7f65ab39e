"""Which processes hold a device open: as long as one does, unbinding it may block in the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
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
    return _holders(root, device_nodes(root, bdf, group))


def device_nodes(root: HostRoot, bdf: Bdf, group: IommuGroup | None) -> tuple[str, ...]:
    """The files by which a function can be open, below the root: its group's, and its own where the kernel has one.

    The second sort is Linux 6.6's (``drivers/vfio/device_cdev.c``): a VM that uses it, by iommufd, opens no group.
    """
    own = list_names(f"{root.function(bdf)}/vfio-dev", root=root).get(())
    return (*(() if group is None else (f"dev/vfio/{group}",)), *(f"dev/vfio/devices/{name}" for name in own))


def holders_of(root: HostRoot, files: Iterable[str]) -> Mapping[str, tuple[Holder, ...]]:
    """For each of *files* (below the root, without a slash in front) that is open: who has it, by pid."""
    wanted = {path: file for file in files for path in (f"/{file}", root.file(file))}
    names = list_names(root.file("proc"), root=root).get(()) if wanted else ()
    pids = [name for name in names if name.isascii() and name.isdigit()]
    found: dict[str, list[Holder]] = {}
    for pid in sorted(pids, key=int):
        for file in sorted({wanted[target] for target in _targets(root, pid) if target in wanted}):
            found.setdefault(file, []).append(_holder(root, int(pid)))
    return {file: tuple(holders) for file, holders in found.items()}


def _holders(root: HostRoot, files: Iterable[str]) -> tuple[Holder, ...]:
    return tuple(dict.fromkeys(holder for holders in holders_of(root, files).values() for holder in holders))


def _targets(root: HostRoot, pid: str) -> Iterator[str]:
    folder = root.file("proc", pid, "fd")
    try:
        entries = os.listdir(folder)
    except OSError:
        return
    for fd in entries:
        try:
            yield os.readlink(f"{folder}/{fd}")
        except OSError:
            continue


def _holder(root: HostRoot, pid: int) -> Holder:
    return Holder(pid, escape(read_text(root.file("proc", str(pid), "comm"), root=root).get("?"))[:64])
