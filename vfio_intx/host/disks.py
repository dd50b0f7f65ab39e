"""What the host keeps on its disks now: mounted file systems, swap, and what is active without being mounted.

A disk in use can look idle in every single table. The mount table knows btrfs by an anonymous device; an array or a
logical volume may serve a VM without being mounted; ZFS tells sysfs nothing of its members; an NVMe disk with native
multipath hangs on a virtual device, and not on its controller. So each of these is looked for where it shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vfio_intx.host.root import HostRoot, list_names, read_text
from vfio_intx.host.use import Use, class_link, owner_in, table_of
from vfio_intx.names import Bdf, escape

#: Stacked disks (dm on md on sd) are followed up to this depth.
_DEEPEST = 8
_MOUNTS, _SWAPS, _POOLS = "proc/self/mountinfo", "proc/swaps", "proc/spl/kstat/zfs"


class _Tables(NamedTuple):
    """What the host's tables say, read once.

    :ivar mounts: mount points by ``major:minor``. :ivar anonymous: by the disk's name, where the number is anonymous.
    :ivar btrfs: for each member of a mounted btrfs, the link that says so. :ivar pools: imported ZFS pools.
    """

    mounts: Mapping[str, str]
    anonymous: Mapping[str, str]
    swaps: frozenset[str]
    btrfs: Mapping[str, str]
    pools: frozenset[str]


def disk_uses(root: HostRoot) -> Iterator[tuple[Bdf, Use]]:
    """What would be lost with each function that has disks."""
    tables = _read_tables(root)
    for name in list_names(root.file("sys/class/block"), root=root).get(()):
        for bdf in _controllers(root, name):
            for use in _uses_of(root, tables, name):
                yield bdf, use


def _controllers(root: HostRoot, name: str) -> tuple[Bdf, ...]:
    """The functions that a disk or partition hangs on; several where it has several ways to it."""
    parts = class_link(root, "block", name)
    bdf = owner_in(parts)
    if bdf is not None:
        return (bdf,)
    subsystem = next((part for part in parts if part.startswith("nvme-subsys") and part != "nvme-subsystem"), None)
    if subsystem is None:
        return ()
    # Links to the controllers lie in the subsystem's directory (nvme_init_subsystem in drivers/nvme/host/core.c).
    entries = list_names(root.file("sys/class/nvme-subsystem", subsystem), root=root).get(())
    found = (owner_in(class_link(root, "nvme", entry)) for entry in entries if entry.startswith("nvme"))
    return tuple(dict.fromkeys(bdf for bdf in found if bdf is not None))


def _read_tables(root: HostRoot) -> _Tables:
    by_number: dict[str, str] = {}
    by_name: dict[str, str] = {}
    for row in reversed(table_of(root, _MOUNTS)[0]):
        if len(row) < 5:
            continue
        by_number[row[2]] = row[4]
        if row[2].startswith("0:") and "-" in row[5:]:  # then: its type, and what it was mounted from
            source = "".join(row[row.index("-", 5) + 2 :][:1])
            by_name |= {path.rpartition("/")[2]: row[4] for path in source.split(":") if path.startswith("/dev/")}
    swaps = frozenset(row[0].rpartition("/")[2] for row in table_of(root, _SWAPS)[0][1:] if row)
    names = list_names(root.file(_POOLS), root=root).get(())
    pools = frozenset(name for name in names if os.path.isdir(root.file(_POOLS, name)))
    return _Tables(by_number, by_name, swaps, dict(_btrfs_members(root)), pools)


def _btrfs_members(root: HostRoot) -> Iterator[tuple[str, str]]:
    # There is a directory for each btrfs that is mounted (btrfs_sysfs_add_mounted in fs/btrfs/sysfs.c).
    for uuid in list_names(root.file("sys/fs/btrfs"), root=root).get(()):
        folder = root.file("sys/fs/btrfs", uuid, "devices")
        for name in list_names(folder, root=root).get(()):
            yield name, f"{root.name_of(folder)}/{name}"


def _uses_of(root: HostRoot, tables: _Tables, name: str) -> Iterator[Use]:
    stack = tuple(dict.fromkeys(_stack(root, name, _DEEPEST)))
    found = [use for disk in stack for use in _uses_of_one(root, tables, disk)]
    yield from found
    if not found and len(stack) > 1:
        text = f"carries {escape(stack[1])}, which is active ({escape(name)})"
        yield Use("disk", text, f"/sys/class/block/{escape(name)}/holders/{escape(stack[1])}")


def _uses_of_one(root: HostRoot, tables: _Tables, disk: str) -> Iterator[Use]:
    shown = escape(disk)
    number = read_text(root.file("sys/class/block", disk, "dev"), root=root).get("")
    mounted = tables.mounts.get(number) or tables.anonymous.get(disk)
    if mounted is not None:
        yield Use("disk", f"holds {escape(mounted)} ({shown})", f"/{_MOUNTS}", escape(mounted))
    elif disk in tables.btrfs:
        yield Use("disk", f"is part of a mounted btrfs ({shown})", tables.btrfs[disk])
    if disk in tables.swaps:
        yield Use("disk", f"holds swap ({shown})", f"/{_SWAPS}")
    pool = _pool(root, number) if tables.pools else None
    if pool in tables.pools:
        yield Use(
            "disk", f"is part of the ZFS pool {escape(pool)} ({shown})", f"/{_POOLS}/{escape(pool)}", escape(pool)
        )


def _pool(root: HostRoot, number: str) -> str:
    """The ZFS pool that a disk was last seen to be a member of, by udev's own record of it; empty for none."""
    if not number.replace(":", "").isdigit():
        return ""
    record = read_text(root.file("run/udev/data", f"b{number}"), root=root).get("")
    fields = dict(line[2:].split("=", 1) for line in record.splitlines() if line.startswith("E:") and "=" in line)
    return fields.get("ID_FS_LABEL", "") if fields.get("ID_FS_TYPE") == "zfs_member" else ""


def _stack(root: HostRoot, name: str, depth: int) -> Iterator[str]:
    # The disk and what is built on it; holders are named after their own entries in /sys/class/block.
    yield name
    if depth:
        for holder in list_names(root.file("sys/class/block", name, "holders"), root=root).get(()):
            yield from _stack(root, holder, depth - 1)
