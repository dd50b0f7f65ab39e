"""What the host itself does with its functions now: addresses and routes, disks and swap, consoles, displays.

Links under ``/sys/class`` tell which function a network interface, a disk or a terminal belongs to: the last PCI
address in the link's target. So a disk behind a USB controller counts as a use of the controller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vfio_intx.abi.netaddr import ipv4_address
from vfio_intx.host.disks import disk_uses
from vfio_intx.host.holders import holders_of
from vfio_intx.host.root import HostRoot, list_names
from vfio_intx.host.use import Use, class_link, owner_in, table_of
from vfio_intx.names import Bdf, escape

_LINK_LOCAL = "20"


def read_uses(root: HostRoot) -> Mapping[Bdf, tuple[Use, ...]]:
    """Every use of every function, from one look at each table; what cannot be read counts as no use."""
    found: dict[Bdf, list[Use]] = {}
    for bdf, use in (*_network(root), *disk_uses(root), *_consoles(root), *_displays(root)):
        found.setdefault(bdf, []).append(use)
    return {bdf: tuple(uses) for bdf, uses in found.items()}


def _owner(root: HostRoot, kind: str, name: str) -> Bdf | None:
    return owner_in(class_link(root, kind, name))


def _network(root: HostRoot) -> Iterator[tuple[Bdf, Use]]:
    routes, route_file = table_of(root, "proc/net/route")
    addresses, address_file = table_of(root, "proc/net/if_inet6")
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
        yield from ((bdf, use) for use in _built_upon(root, name))


def _built_upon(root: HostRoot, name: str) -> Iterator[Use]:
    # A bridge, bond or team is its master; a VLAN or macvlan only lies above it (netdev_adjacent_sysfs_add, net/core).
    folder, shown = f"/sys/class/net/{escape(name)}", escape(name)
    above = list_names(root.file("sys/class/net", name), root=root).get(())
    if "master" in above:
        yield Use("network", f"is part of a bridge, bond or team ({shown})", f"{folder}/master")
        return
    for upper in (entry for entry in above if entry.startswith("upper_")):
        text = f"carries {escape(upper.removeprefix('upper_'))} ({shown})"
        yield Use("network", text, f"{folder}/{escape(upper)}")


def _consoles(root: HostRoot) -> Iterator[tuple[Bdf, Use]]:
    rows, source = table_of(root, "proc/consoles")
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
