"""The guest's (L2's) root: busybox, a few modules and an init, as one cpio archive, kept by what is in it."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vfio_intx.errors import MissingError
from vfio_intx.lab import kernels
from vfio_intx.lab.kernels import Kernel, cache_root

#: Drivers of the cards that scenarios pass through, with all they need; those the kernel has built in are left out.
GUEST_MODULES = (
    "e1000",
    "8139cp",
    "8139too",
    "pcnet32",
    "ne2k-pci",
    "tulip",
    "e100",
    "snd-ens1370",
    "snd-intel8x0",
    "kvaser_pci",
    "uio_pci_generic",
)

#: The cpio "newc" header: magic and 13 numbers of 8 hexadecimal digits (initramfs buffer format, kernel documentation).
_MAGIC = "070701"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive; ``mode`` has the file type's bits, ``device`` is major and minor."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Iterable[Entry]) -> bytes:
    """The archive, in the kernel's format; the same entries always give the same bytes."""
    blocks = []
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        numbers = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        header = _MAGIC + "".join(f"{number:08x}" for number in numbers)
        blocks += [_padded(header.encode() + name), _padded(entry.data)]
    return b"".join(blocks)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def parse_modules_dep(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """``modules.dep`` as module name -> (its file, the files it needs, in the order to load them)."""
    table = {}
    for line in text.splitlines():
        file, _, needs = line.partition(":")
        name = Path(file).name.split(".", 1)[0].replace("-", "_")
        # depmod lists the nearest need first; loading goes from the far end.
        table[name] = (file, tuple(reversed(needs.split())))
    return table


def module_files(table: Mapping[str, tuple[str, tuple[str, ...]]], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Each of *names* that is a module, with all files to load for it, in order."""
    found = {}
    for name in names:
        if name.replace("-", "_") in table:
            file, needs = table[name.replace("-", "_")]
            found[name] = (*needs, file)
    return found


def initramfs_for(kernel: Kernel) -> Path:
    """The archive for *kernel*, built if the cache does not hold it. :raise MissingError: without a static busybox."""
    busybox = _busybox()
    init = resources.files("vfio_intx.lab").joinpath("guest-init.sh").read_bytes()
    digest = hashlib.sha256()
    for part in (kernel.release.encode(), busybox, init, repr(GUEST_MODULES).encode(), Path(__file__).read_bytes()):
        digest.update(hashlib.sha256(part).digest())
    path = cache_root() / "initramfs" / f"{kernel.release}-{digest.hexdigest()[:16]}.cpio"
    if not path.is_file():
        kernels.cache_folder("initramfs")
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(cpio(_entries(kernel, busybox, init)))
        scratch.rename(path)
    return path


def _entries(kernel: Kernel, busybox: bytes, init: bytes) -> list[Entry]:
    def folder(path: str) -> Entry:
        return Entry(path, stat.S_IFDIR | 0o755)

    def program(path: str, data: bytes) -> Entry:
        return Entry(path, stat.S_IFREG | 0o755, data)

    entries = [folder(name) for name in ("bin", "dev", "proc", "sys", "run", "tmp", "lib", "lib/m", "lib/load")]
    entries += [
        # The kernel opens /dev/console before anything is mounted.
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        program("bin/busybox", busybox),
        program("init", init),
    ]
    table = parse_modules_dep((kernel.modules / "modules.dep").read_text("utf-8"))
    wanted = module_files(table, GUEST_MODULES)
    for file in sorted({file for files in wanted.values() for file in files}):
        entries.append(Entry(f"lib/m/{_plain(file)}", stat.S_IFREG | 0o644, _module(kernel.modules / file)))
    for name, files in wanted.items():
        order = "".join(f"{_plain(file)}\n" for file in files)
        entries.append(Entry(f"lib/load/{name}", stat.S_IFREG | 0o644, order.encode()))
    return entries


def _plain(file: str) -> str:
    """The module's file name without its compression."""
    return Path(file).name.split(".ko", 1)[0] + ".ko"


def _module(path: Path) -> bytes:
    """A module as the oldest kernel takes it: uncompressed."""
    raw = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(raw)
    if path.suffix != ".ko":
        raise MissingError(f"{path} is compressed in a way this program does not read")
    return raw


def _busybox() -> bytes:
    """A busybox that needs no library of the machine's."""
    for folder in kernels.search_path().split(":"):
        path = shutil.which("busybox", path=folder)
        if path is not None and is_static(raw := Path(path).read_bytes()):
            return raw
    raise MissingError("the guest needs a statically linked busybox", hint="apt-get install busybox-static")


def is_static(elf: bytes) -> bool:
    """Whether a 64-bit little-endian ELF program asks for no interpreter (no PT_INTERP in its program headers)."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return False
    (offset,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    kinds = [struct.unpack_from("<I", elf, offset + index * size)[0] for index in range(count)]
    return 3 not in kinds
