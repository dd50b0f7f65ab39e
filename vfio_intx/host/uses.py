"""What the host itself does with its functions now: addresses and routes, disks and swap, consoles, displays.

Links under ``/sys/class`` tell which function a network interface, a disk or a terminal belongs to: the last PCI
address in the link's target. So a disk behind a USB controller counts as a use of the controller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vfio_intx.abi.netaddr import ipv4_address
from vfio_intx.host.holders import holders_of
from vfio_intx.host.root import HostRoot, list_names, read_text
from vfio_intx.names import Bdf, escape

#: Stacked disks (dm on md on sd) are followed up to this depth.
_DEEPEST = 8
_LINK_LOCAL = "20"


class Use(NamedTuple):
    """Something that would break if the function were taken away.

    :ivar what: ``network``, ``disk``, ``console`` or ``display``.
    :ivar text: what exactly, to complete "it …".
    :ivar source: the file that says so.
    """

    what: str
    text: str
    source: str


def read_uses(root: HostRoot) -> Mapping[Bdf, tuple[Use, ...]]:
    """Every use of every function, from one look at each table; what cannot be read counts as no use."""
    found: dict[Bdf, list[Use]] = {}
    for bdf, use in (*_network(root), *_disks(root), *_consoles(root), *_displays(root)):
        found.setdefault(bdf, []).append(use)
    return {bdf: tuple(uses) for bdf, uses in found.items()}


def _owner(root: HostRoot, kind: str, name: str) -> Bdf | None:
    try:
        target = os.readlink(root.file("sys/class", kind, name))
    except OSError:
        return None
    for part in reversed(target.split("/")):
        bdf = Bdf.maybe(part)
        if bdf is not None:
            return bdf
    return None


def _lines(root: HostRoot, name: str) -> tuple[list[list[str]], str]:
    text = read_text(root.file(name), root=root)
    return [line.split() for line in (text.value or "").splitlines()], text.source


def _network(root: HostRoot) -> Iterator[tuple[Bdf, Use]]:
    routes, route_file = _lines(root, "proc/net/route")
    addresses, address_file = _lines(root, "proc/net/if_inet6")
    for name in list_names(root.file("sys/class/net"), root=root).get(()):
        bdf = _owner(root, "net", name)
        if bdf is None:
            continue
        mine = [row for row in routes[1:] if len(row) > 3 and row[0] == name]
        if any(row[1] == "00000000" for row in mine):
            yield bdf, Use("network", f"carries the default route ({escape(name)})", route_file)
        elif mine:
            yield bdf, Use("network", f"has an address and routes ({escape(name)})", route_file)
        elif any(len(row) > 5 and row[5] == name and row[3] != _LINK_LOCAL for row in addresses):
            yield bdf, Use("network", f"has an IPv6 address ({escape(name)})", address_file)
        elif not root.text and ipv4_address(name) is not None:  # a fake root has no network of its own to ask
            yield bdf, Use("network", f"has an address ({escape(name)})", f"SIOCGIFADDR {escape(name)}")
        if os.path.islink(root.file("sys/class/net", name, "master")):
            source = f"/sys/class/net/{escape(name)}/master"
            yield bdf, Use("network", f"is part of a bridge, bond or team ({escape(name)})", source)


def _disks(root: HostRoot) -> Iterator[tuple[Bdf, Use]]:
    mounts, mount_file = _lines(root, "proc/self/mountinfo")
    mounted = {row[2]: row[4] for row in reversed(mounts) if len(row) > 4}
    swaps, swap_file = _lines(root, "proc/swaps")
    swapping = {row[0].rpartition("/")[2] for row in swaps[1:] if row}
    for name in list_names(root.file("sys/class/block"), root=root).get(()):
        bdf = _owner(root, "block", name)
        if bdf is None:
            continue
        for disk in _stack(root, name, _DEEPEST):
            number = read_text(root.file("sys/class/block", disk, "dev"), root=root).value
            if number in mounted:
                yield bdf, Use("disk", f"holds {escape(mounted[number])} ({escape(disk)})", mount_file)
            if disk in swapping:
                yield bdf, Use("disk", f"holds swap ({escape(disk)})", swap_file)


def _stack(root: HostRoot, name: str, depth: int) -> Iterator[str]:
    # The disk and what is built on it; holders are named after their own entries in /sys/class/block.
    yield name
    if depth:
        for holder in list_names(root.file("sys/class/block", name, "holders"), root=root).get(()):
            yield from _stack(root, holder, depth - 1)


def _consoles(root: HostRoot) -> Iterator[tuple[Bdf, Use]]:
    rows, source = _lines(root, "proc/consoles")
    for row in rows:
        bdf = _owner(root, "tty", row[0]) if row and "/" not in row[0] and row[0] != ".." else None
        if bdf is not None:
            yield bdf, Use("console", f"is a console of the host ({escape(row[0])})", source)


def _displays(root: HostRoot) -> Iterator[tuple[Bdf, Use]]:
    # card0 and renderD128 are nodes in /dev/dri; card0-DP-1 is a connector.
    names = [name for name in list_names(root.file("sys/class/drm"), root=root).get(()) if "-" not in name]
    nodes = {f"dev/dri/{name}": bdf for name in names if (bdf := _owner(root, "drm", name)) is not None}
    for node, holders in holders_of(root, nodes).items():
        yield nodes[node], Use("display", f"draws for {holders[0]}", f"/proc/{holders[0].pid}/fd: /{node}")
