"""The one root that every path of a host derives from, so that a fake tree can stand in for the machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from vfio_intx.chain.fact import Fact
from vfio_intx.names import Bdf

if TYPE_CHECKING:  # pathlib alone costs more than a scan of a small machine
    from pathlib import Path

#: No file of sysfs or procfs that we read as text is longer (the longest is /proc/interrupts, a column for each CPU); a
#: longer one is not what it says it is.
LONGEST_FILE = 1 << 26
_PIECE = 1 << 16


class _Text(NamedTuple):
    text: str


class HostRoot(_Text):
    """``/`` of a host: the real one, or a directory that imitates its ``sys``, ``proc``, ``etc`` and ``dev``.

    :ivar text: its absolute path, without a slash at the end (so empty for the real one).
    """

    __slots__ = ()

    def __new__(cls, path: str | os.PathLike[str] = "/") -> HostRoot:
        """The root at that directory. :raise ValueError: if its path is not absolute."""
        if not os.path.isabs(path):
            raise ValueError("a host root is an absolute path")
        return super().__new__(cls, os.fspath(path).rstrip("/"))

    @property
    def path(self) -> Path:
        """The directory that this root is."""
        return self._path(self.text or "/")

    @staticmethod
    def _path(text: str) -> Path:
        from pathlib import Path

        return Path(text)

    def file(self, *parts: str) -> str:
        """The path of these components below the root; no component may be absolute or ``..``."""
        for part in parts:
            if part.startswith("/") or ".." in part.split("/"):
                raise ValueError(f"{part!r} would leave the host root")
        return "/".join((self.text, *parts))

    def at(self, *parts: str) -> Path:
        """As :meth:`file`, as a Path."""
        return self._path(self.file(*parts))

    def name_of(self, path: str | os.PathLike[str]) -> str:
        """What the host calls a path below this root: the same without the prefix of a fake root."""
        return os.fspath(path).removeprefix(self.text)

    def function(self, bdf: Bdf) -> str:
        """The sysfs directory of one PCI function."""
        return self.file("sys/bus/pci/devices", str(bdf))

    def pci_device(self, bdf: Bdf) -> Path:
        """As :meth:`function`, as a Path."""
        return self._path(self.function(bdf))


def read_text(path: str | os.PathLike[str], *, root: HostRoot) -> Fact[str]:
    """One small text file as a fact, without its trailing newline; what went wrong is in the fact, never raised.

    The source of the fact is the path as the host knows it, without a fake root's prefix.
    """
    source = root.name_of(path)
    try:
        raw = _read_all(path)
    except OSError as error:
        return Fact.unknown(source, error.strerror or str(error))
    if len(raw) > LONGEST_FILE:
        return Fact.unknown(source, f"longer than {LONGEST_FILE} bytes")
    return Fact.known(raw.decode("utf-8", "backslashreplace").removesuffix("\n"), source)


def _read_all(path: str | os.PathLike[str]) -> bytes:
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


def list_names(path: str | os.PathLike[str], *, root: HostRoot) -> Fact[tuple[str, ...]]:
    """The names in a directory, sorted; never raises."""
    source = root.name_of(path)
    try:
        return Fact.known(tuple(sorted(os.listdir(path))), source)
    except OSError as error:
        return Fact.unknown(source, error.strerror or str(error))
