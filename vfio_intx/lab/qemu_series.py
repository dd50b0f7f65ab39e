"""The patch series for QEMU: what there is, in which order, and the name under which a build of it is kept."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.errors import MissingError, UsageError

#: The folder of the series, in the source tree of this project.
PATCHES = Path(__file__).resolve().parents[2] / "qemu-patches"

_PATCH = re.compile(r"[0-9]{4}-[A-Za-z0-9._-]{1,100}\.patch")

#: Where Debian's packages put firmware: qemu-system-data, seabios, ipxe-qemu.
FIRMWARE = (Path("/usr/share/qemu"), Path("/usr/share/seabios"), Path("/usr/lib/ipxe/qemu"))

#: Only what the lab needs: a build in minutes, not in half an hour.
_FLAGS = (
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-kvm",
    "--enable-tcg",
    "--enable-slirp",
    "--enable-virtfs",
    "--enable-attr",
    "--enable-cap-ng",
    "--enable-fdt=system",
    "--enable-trace-backends=log",
    "--disable-docs",
    "--disable-werror",
    # The distribution's source has no firmware; the machine's own is found where its packages put it.
    "--disable-install-blobs",
    "--firmwarepath=" + ":".join(map(str, FIRMWARE)),
)


@dataclass(frozen=True, slots=True)
class Base:
    """A QEMU release that a distribution carries and that we have a series for.

    :ivar name: the folder of its series: the release, ``10.0``, or ``lab``.
    :ivar release: of QEMU, as the distribution's source package has it.
    :ivar suite: the Debian suite whose source package it is built from.
    :ivar flags: arguments of ``configure``.
    :ivar qtests: the test programs that touch what the series changes.
    """

    name: str
    release: str
    suite: str
    flags: tuple[str, ...]
    qtests: tuple[str, ...] = ("device-introspect-test", "qmp-cmd-test", "qos-test")


BASES = {
    "10.0": Base("10.0", "10.0", "trixie", (*_FLAGS, "--enable-pixman")),
    "7.2": Base("7.2", "7.2", "bookworm", _FLAGS),
}
DEFAULT_BASE = "10.0"
#: What the lab's host can be booted in: cards of L1 that bear other cards' ids. No part of the series, nor meant to be.
LAB = Base("lab", "10.0", "trixie", (*_FLAGS, "--enable-pixman"))


def base(name: str) -> Base:
    """The base of that name. :raise UsageError: listing those there are."""
    known = {**BASES, LAB.name: LAB}
    if name not in known:
        raise UsageError(f"there is no series for QEMU {name[:32]!r}", hint="one of " + ", ".join(known))
    return known[name]


def patches(chosen: Base, folder: Path = PATCHES) -> tuple[Path, ...]:
    """The patches of a base in the order of its ``series`` file (quilt's format; ``#`` starts a comment).

    :raise MissingError: if the series or a patch that it lists is not there, or a name in it is none of ours.
    """
    series = folder / chosen.name / "series"
    if not series.is_file():
        raise MissingError(f"{series} does not exist", hint="run this from a full source tree of the project")
    found = []
    for line in series.read_text("utf-8").splitlines():
        name = line.split("#", 1)[0].strip()
        if not name:
            continue
        if not _PATCH.fullmatch(name) or not (series.parent / name).is_file():
            raise MissingError(f"{series} lists {name[:100]!r}, which is no patch beside it")
        found.append(series.parent / name)
    return tuple(found)


def key(chosen: Base, applied: tuple[Path, ...]) -> str:
    """Twelve hexadecimal digits that change with the flags, the patches or their order."""
    digest = hashlib.sha256(" ".join(chosen.flags).encode())
    for patch in applied:
        digest.update(hashlib.sha256(patch.read_bytes()).digest())
    return digest.hexdigest()[:12]
