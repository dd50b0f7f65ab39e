"""One archive with all that a bug report needs, and nothing that tells whose host it is."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from vfio_intx import __version__
from vfio_intx.chain.fact import Fact
from vfio_intx.chain.plain import plain
from vfio_intx.diagnose.prediction import predict_all
from vfio_intx.errors import WorldError
from vfio_intx.host.redact import Redactor
from vfio_intx.host.replay import to_bytes
from vfio_intx.host.root import HostRoot, list_names, read_text
from vfio_intx.host.snapshot import Snapshot
from vfio_intx.host.use import Use

#: What is in the archive, by file; shown before anything is written.
CONTENTS = {
    "snapshot.json": "facts of every PCI function, IRQ line, IOMMU group and of the kernel; scan --from replays it",
    "findings.json": "what the rules conclude for each function that may have a pin",
    "kernel-log.txt": "the kernel log's lines about interrupts, vfio and the IOMMU",
    "interrupts.txt": "/proc/interrupts",
    "status.json": "every line of every VM that runs, as status --json has it, and the versions of their QEMUs",
    "versions.json": "of this program, the kernel and Python",
}
#: Kernel parameters, by their beginnings, that bear on interrupts.
_TELLING_WORDS = ("iommu", "intel_iommu", "amd_iommu", "pci", "vfio", "irq", "noapic", "nolapic", "kvm", "threadirqs")
LEFT_OUT = (
    "MAC and IP addresses, serial numbers, UUIDs, the names of the host, of its network interfaces, mount points and "
    "ZFS pools and of VMs, and the paths of their files are replaced by hashes; who built the kernel is left out"
)
#: Mount points that every host has, and that tell how much depends on a disk.
_COMMON_PLACES = frozenset({"/", "/boot", "/boot/efi", "/home", "/opt", "/srv", "/tmp", "/usr", "/var", "/var/log"})
#: Facts in the words of the kernel and of this program. They name nobody, and a replay needs them as they are, even if
#: the host is called "e1000".
_OUR_WORDS = frozenset(
    {"schema", "bdf", "config", "driver", "override", "power", "reset_methods", "files", "kvm", "owner", "what", "code",
     "stage", "severity"}
)  # fmt: skip


def host_names(root: HostRoot) -> tuple[str, ...]:
    """The names that this host is known by."""
    names = (read_text(root.at(name), root=root).get("") for name in ("proc/sys/kernel/hostname", "etc/hostname"))
    return tuple(part for name in names for part in {name.strip(), name.strip().split(".")[0]} if part)


def host_interfaces(root: HostRoot, snapshot: Snapshot) -> frozenset[str]:
    """The network interfaces of this host, without the loopback, which every host has."""
    of_cards = (name for function in snapshot.functions.values() for name in function.interfaces.get(()))
    return frozenset((*list_names(root.at("sys/class/net"), root=root).get(()), *of_cards)) - {"lo"}


def build(snapshot: Snapshot, status: Mapping[str, object], redactor: Redactor, python: str) -> Mapping[str, bytes]:
    """The files of the archive, cleaned. *status* is that of :func:`~vfio_intx.diagnose.vms.look_at_vms`."""
    anonymous = _without_identity(snapshot, redactor)
    pinned = [function for function in anonymous.functions.values() if function.may_have_pin]
    found = [
        {"bdf": prediction.subject.name, "findings": [msgspec.to_builtins(plain(item)) for item in prediction.findings]}
        for prediction in predict_all(anonymous, pinned)
    ]
    lines = (anonymous.lines.value or {}).values()
    tables = {
        "snapshot.json": json.loads(to_bytes(anonymous)),
        "findings.json": {"schema": "vfio-intx/findings/1", "functions": found},
        "status.json": status,
        "versions.json": _versions(anonymous, python),
    }
    texts = {
        "kernel-log.txt": "".join(f"[{line.at:12.6f}] {line.text}\n" for line in anonymous.log.get(())),
        "interrupts.txt": "".join(f"{line.irq:>4}: {line.count:>12} {line.chip}  {line.actions}\n" for line in lines),
    }
    cleaned = {name: json.dumps(_clean(table, redactor), indent=1) for name, table in tables.items()}
    return {name: text.encode() for name, text in (cleaned | {n: redactor.clean(t) for n, t in texts.items()}).items()}


def _clean(value: object, redactor: Redactor) -> object:
    # Values only: a host that is called "kernel" must not cost the table its keys.
    if isinstance(value, str):
        return redactor.clean(value)
    if isinstance(value, list | tuple):
        return [_clean(item, redactor) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: item if key in _OUR_WORDS else _clean(item, redactor) for key, item in value.items()}


def _versions(snapshot: Snapshot, python: str) -> dict[str, object]:
    kernel = snapshot.kernel
    return {"vfio-intx": __version__, "kernel": kernel.release.value, "version": kernel.version.value, "python": python}


def _without_identity(snapshot: Snapshot, redactor: Redactor) -> Snapshot:
    # The command line names disks, hosts and sometimes keys: only words that bear on interrupts stay. (A card's serial
    # number lies beyond the 256 bytes of configuration space that a snapshot holds.)
    kernel = snapshot.kernel._replace(
        boot_id=Fact.unknown(snapshot.kernel.boot_id.source, "left out of reports"),
        command_line=snapshot.kernel.command_line.map(_safe_words),
        version=snapshot.kernel.version.map(lambda text: re.sub(r"\(\S+@\S+\)", "(its builder)", text)),
    )
    claims = {
        bdf: tuple(claim.renamed(redactor.mark("vm", claim.vm)) if claim.vm else claim for claim in claims)
        for bdf, claims in snapshot.claims.items()
    }
    uses = {bdf: tuple(_anonymous_use(use, redactor) for use in uses) for bdf, uses in snapshot.uses.items()}
    unread = tuple(dict.fromkeys((source.rpartition("/")[0], why) for source, why in snapshot.unread))
    return snapshot._replace(kernel=kernel, claims=claims, uses=uses, unread=unread)


def _anonymous_use(use: Use, redactor: Redactor) -> Use:
    if not use.name or use.name in _COMMON_PLACES:
        return use
    return use.renamed(redactor.mark("place" if use.name.startswith("/") else "pool", use.name))


def _safe_words(command_line: str) -> str:
    return " ".join(word for word in command_line.split() if word.startswith(_TELLING_WORDS))


@contextmanager
def new_archive(path: Path) -> Iterator[BinaryIO]:
    """A new file for :func:`write_archive`, readable by its owner only; an existing file is never overwritten.

    On failure, and where the block ends by an exception, nothing is left.

    :raise WorldError: if it exists or cannot be made.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise WorldError(f"{path} cannot be made: {error.strerror}", hint="name another file with --output") from error
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            yield file
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def write_archive(file: BinaryIO, path: Path, files: Mapping[str, bytes]) -> None:
    """Write the archive into the *file* that was made at *path*. :raise WorldError: if there is no room."""
    packed = memoryview(_packed(files))
    try:
        while packed:
            packed = packed[file.write(packed) :]
    except OSError as error:
        raise WorldError(
            f"{path} cannot be written: {error.strerror}", hint="name a place with more room with --output"
        ) from error


def _packed(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"vfio-intx-report/{name}")
            member.size, member.mode = len(content), 0o600
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
