"""Snapshots as files: what one host was like, to be looked at on another."""

from __future__ import annotations

import os
from typing import NamedTuple

from vfio_intx.chain.fact import Fact
from vfio_intx.chain.plain import from_json, to_json
from vfio_intx.errors import MissingError, UsageError
from vfio_intx.host.claim import Claim
from vfio_intx.host.iommu import Group, IommuFacts
from vfio_intx.host.irq import IrqLine, Spurious
from vfio_intx.host.kernel import KernelFacts
from vfio_intx.host.log import LogLine
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.snapshot import Snapshot
from vfio_intx.host.use import Use
from vfio_intx.names import Bdf, HostIrq

SCHEMA = "vfio-intx/snapshot/1"
#: A host with 4,096 functions makes about 20 MiB.
_LONGEST = 1 << 28


class _File(NamedTuple):
    """The file's form: as a snapshot, with lists in place of the tables that are not keyed by numbers."""

    schema: str
    functions: tuple[PciFunction, ...]
    lines: Fact[tuple[IrqLine, ...]]
    actions: dict[HostIrq, Fact[tuple[str, ...]]]
    spurious: dict[HostIrq, Fact[Spurious]]
    iommu_units: Fact[tuple[str, ...]]
    iommu_groups: tuple[Group, ...]
    kernel: KernelFacts
    uses: tuple[tuple[Bdf, tuple[Use, ...]], ...]
    claims: tuple[tuple[Bdf, tuple[Claim, ...]], ...]
    log: Fact[tuple[LogLine, ...]]
    unread: tuple[tuple[str, str], ...] = ()


def to_bytes(snapshot: Snapshot) -> bytes:
    """A snapshot as JSON of the schema ``vfio-intx/snapshot/1``."""
    file = _File(
        SCHEMA,
        tuple(snapshot.functions.values()),
        snapshot.lines.map(lambda lines: tuple(lines.values())),
        dict(snapshot.actions),
        dict(snapshot.spurious),
        snapshot.iommu.units,
        tuple(snapshot.iommu.groups.values()),
        snapshot.kernel,
        tuple(snapshot.uses.items()),
        tuple(snapshot.claims.items()),
        snapshot.log,
        snapshot.unread,
    )
    return to_json(file)


def from_bytes(raw: bytes, name: str) -> Snapshot:
    """The snapshot in a file's bytes; *name* is for the message. :raise UsageError: if they hold none."""
    raw = _out_of_archive(raw, name)
    try:
        file = from_json(raw, _File)
    except ValueError as error:
        raise UsageError(
            f"{name} holds no snapshot: {str(error)[:200]}", hint="vfio-intx report makes one: snapshot.json"
        ) from error
    if file.schema != SCHEMA:
        raise UsageError(f"{name} has the schema {file.schema[:40]!r}, this program reads {SCHEMA}")
    return Snapshot(
        {function.bdf: function for function in file.functions},
        file.lines.map(lambda lines: {line.irq: line for line in lines}),
        file.actions,
        file.spurious,
        IommuFacts(file.iommu_units, {group.number: group for group in file.iommu_groups}),
        file.kernel,
        dict(file.uses),
        dict(file.claims),
        file.log,
        file.unread,
    )


def _out_of_archive(raw: bytes, name: str) -> bytes:
    """What a report's archive has in it, and whatever is no archive as it is."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    from vfio_intx.host.archive import unpack

    return unpack(raw, name, _LONGEST)


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot in a file. :raise MissingError: if it cannot be read. :raise UsageError: if it holds none."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_LONGEST)
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from error
    return from_bytes(raw, os.fspath(path))
