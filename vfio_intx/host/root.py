"""The one root that every path of a host derives from, so that a fake tree can stand in for the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.chain.fact import Fact
from vfio_intx.names import Bdf, IommuGroup

#: No file of sysfs or procfs that we read as text is longer (the longest is /proc/interrupts, a column for each CPU); a
#: longer one is not what it says it is.
LONGEST_FILE = 1 << 26
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class HostRoot:
    """``/`` of a host: the real one, or a directory that imitates its ``sys``, ``proc``, ``etc`` and ``dev``."""

    path: Path = Path("/")

    def __post_init__(self) -> None:
        if not self.path.is_absolute():
            raise ValueError("a host root is an absolute path")

    def at(self, *parts: str) -> Path:
        """The path of these components below the root; no component may be absolute or ``..``."""
        for part in parts:
            if part.startswith("/") or ".." in part.split("/"):
                raise ValueError(f"{part!r} would leave the host root")
        return self.path.joinpath(*parts)

    def pci_devices(self) -> Path:
        """``/sys/bus/pci/devices``."""
        return self.at("sys/bus/pci/devices")

    def pci_device(self, bdf: Bdf) -> Path:
        """The sysfs directory of one function."""
        return self.pci_devices() / str(bdf)

    def pci_driver(self, driver: str) -> Path:
        """The sysfs directory of a PCI driver; *driver* has been through :func:`vfio_intx.names.parse_driver`."""
        return self.at("sys/bus/pci/drivers") / driver

    def iommu_group(self, group: IommuGroup) -> Path:
        """The sysfs directory of an IOMMU group."""
        return self.at("sys/kernel/iommu_groups") / str(group)


def read_text(path: Path, *, root: HostRoot) -> Fact[str]:
    """One small text file as a fact, without its trailing newline; what went wrong is in the fact, never raised.

    The source of the fact is the path as the host knows it, without a fake root's prefix.
    """
    source = "/" + os.path.relpath(path, root.path)
    try:
        raw = _read_all(path)
    except OSError as error:
        return Fact.unknown(source, error.strerror or str(error))
    if len(raw) > LONGEST_FILE:
        return Fact.unknown(source, f"longer than {LONGEST_FILE} bytes")
    return Fact.known(raw.decode("utf-8", "backslashreplace").removesuffix("\n"), source)


def _read_all(path: Path) -> bytes:
    # In small pieces: /proc/sys answers ENOMEM to a read with a buffer of some MiB (proc_sys_call_handler).
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        raw = bytearray()
        while len(raw) <= LONGEST_FILE and (piece := os.read(fd, _PIECE)):
            raw += piece
        return bytes(raw)
    finally:
        os.close(fd)


def read_at(directory: int, name: str, where: str, *, most: int = 4096) -> Fact[bytes]:
    """The first *most* bytes of the file *name* in an open directory, which the host calls *where*; never raises."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            return Fact(os.read(fd, most), f"{where}/{name}")
        finally:
            os.close(fd)
    except OSError as error:
        return Fact(None, f"{where}/{name}", error.strerror or str(error))


def link_at(directory: int, name: str, where: str) -> Fact[str]:
    """Where the symbolic link *name* in an open directory points to; never raises."""
    try:
        return Fact(os.readlink(name, dir_fd=directory), f"{where}/{name}")
    except OSError as error:
        return Fact(None, f"{where}/{name}", error.strerror or str(error))


def list_names(path: Path, *, root: HostRoot) -> Fact[tuple[str, ...]]:
    """The names in a directory, sorted; never raises."""
    source = "/" + os.path.relpath(path, root.path)
    try:
        return Fact.known(tuple(sorted(entry.name for entry in os.scandir(path))), source)
    except OSError as error:
        return Fact.unknown(source, error.strerror or str(error))
