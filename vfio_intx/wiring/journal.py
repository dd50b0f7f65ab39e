"""What survives a crash: one small record a function, on disk before the first change and gone after ``restore``.

The kernel forgets neither a binding nor a ``driver_override`` when we die, and does not know which driver was first.
So the record is written and synced, file and directory, before anything is changed. It says where the function was and
where it is going; plans are made from what is seen, so replaying a record twice does nothing the second time.

Format: one line ``vfio-intx-record 1 SHA256``, then JSON that has this checksum. A record that is torn, flipped or of a
newer version is refused by name and never acted on. A new version of a record replaces the old one by rename.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vfio_intx.abi.filelock import try_lock
from vfio_intx.chain.plain import from_json, to_json
from vfio_intx.deadline import Deadline
from vfio_intx.errors import BusyError, RefusedError, UsageError, VfioIntxError, WorldError
from vfio_intx.host.pci import PciIds
from vfio_intx.names import Bdf, parse_driver
from vfio_intx.wiring.steps import Binding

DEFAULT_STATE_DIRECTORY = Path("/var/lib/vfio-intx")
LOCK_BUDGET_S = 10.0
_MAGIC = "vfio-intx-record"
_VERSION = "1"
_LONGEST = 1 << 14
_SUFFIX = ".record"


class Record(NamedTuple):
    """What is known of a function that this program has changed.

    :ivar ids: what the function is; a record says nothing about another card at the same address.
    :ivar first: the binding before our first change, which ``restore`` brings back.
    :ivar goal: where the change in progress (or the last one) leads.
    :ivar settled: False from before the first write of a change until its result has been read back.
    """

    bdf: Bdf
    ids: PciIds
    first: Binding
    goal: Binding
    settled: bool

    def settle(self) -> Record:
        """The same record with its change completed."""
        return self._replace(settled=True)


class BadRecord(WorldError):
    """A record that cannot be trusted; nothing was done on its word."""


def encode(record: Record) -> bytes:
    """The bytes of a record's file."""
    body = to_json(record)
    return f"{_MAGIC} {_VERSION} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def decode(raw: bytes, name: str) -> Record:
    """The record in a file's bytes; *name* is for the message. :raise BadRecord: if torn, flipped, foreign or newer."""
    hint = f"look at {name}; when the device is as it should be, delete the file"
    head, newline, body = raw.partition(b"\n")
    words = head.decode("ascii", "replace").split(" ")
    if not newline or len(words) != 3 or words[0] != _MAGIC:
        raise BadRecord(f"{name} is not a whole record", hint=hint)
    if words[1] != _VERSION:
        raise BadRecord(
            f"{name} is of version {words[1]!r}, this program reads {_VERSION}", hint="use the newer program"
        )
    if words[2] != hashlib.sha256(body).hexdigest():
        raise BadRecord(f"{name} is damaged: its checksum does not match", hint=hint)
    try:
        record = from_json(body, Record)
        for driver in (record.first.driver, record.first.override, record.goal.driver, record.goal.override):
            if driver:
                parse_driver(driver)
    except (ValueError, UsageError) as error:
        raise BadRecord(f"{name} does not hold a record: {error}", hint=hint) from error
    return record


class StateDirectory:
    """The open, checked, locked directory of records, made by :func:`open_state`; all access is by its descriptor."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    def read(self, bdf: Bdf) -> Record | None:
        """The record of a function, None where there is none. :raise BadRecord: if it is not to be trusted."""
        name = f"{bdf}{_SUFFIX}"
        try:
            # Non-blocking: a FIFO in a record's place would have no other end.
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadRecord(f"{self.path / name} cannot be opened: {error.strerror}") from error
        try:
            with os.fdopen(fd, "rb") as file:
                record = decode(file.read(_LONGEST), str(self.path / name))
        except OSError as error:
            raise BadRecord(f"{self.path / name} cannot be read: {error.strerror}") from error
        if record.bdf != bdf:
            raise BadRecord(f"{self.path / name} is the record of {record.bdf}")
        return record

    def write(self, record: Record) -> None:
        """Put a record on disk in place of the former one, all or nothing, synced. :raise WorldError: if that fails."""
        name = f"{record.bdf}{_SUFFIX}"
        try:
            fd = os.open(
                f"{name}.new",
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=self._fd,
            )
            with os.fdopen(fd, "wb") as file:
                file.write(encode(record))
                file.flush()
                os.fsync(file.fileno())
            os.rename(f"{name}.new", name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            os.fsync(self._fd)
        except OSError as error:
            raise WorldError(
                f"the record {self.path / name} cannot be written: {error.strerror}; nothing was changed",
                hint="make room there, or name another place with --state-dir",
            ) from error

    def remove(self, bdf: Bdf) -> None:
        """Forget a function, durably, with what a write that died left; it need not have been known.

        :raise WorldError: if that fails; the function itself is not touched.
        """
        try:
            for name in (f"{bdf}{_SUFFIX}", f"{bdf}{_SUFFIX}.new"):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._fd)
            os.fsync(self._fd)
        except OSError as error:
            raise WorldError(
                f"the record of {bdf} in {self.path} cannot be removed: {error.strerror}",
                hint=f"look at {self.path / str(bdf)}{_SUFFIX}*; when the device is as it should be, delete them",
            ) from error

    def recorded(self) -> tuple[Bdf, ...]:
        """The functions that have a record, trustworthy or not. A file of another name is not ours."""
        with os.scandir(self._fd) as entries:
            names = [entry.name.removesuffix(_SUFFIX) for entry in entries if entry.name.endswith(_SUFFIX)]
        found: list[Bdf] = []
        for name in names:
            with suppress(UsageError):
                bdf = Bdf.parse(name)
                found += [bdf] if str(bdf) == name else []
        return tuple(sorted(found))


def state_path(given: str | None) -> Path:
    """Where records are: *given*, else ``VFIO_INTX_STATE``, else the default. :raise UsageError: if not absolute."""
    path = Path(given or os.environ.get("VFIO_INTX_STATE") or DEFAULT_STATE_DIRECTORY)
    if not path.is_absolute():
        raise UsageError(f"the state directory must be an absolute path, not {str(path)[:100]!r}")
    return path


@contextmanager
def open_state(path: Path) -> Iterator[StateDirectory]:
    """The state directory, made if need be, with its lock held: one process changes drivers at a time.

    :raise RefusedError: if it is a symbolic link, somebody else's, or open to others.
    :raise BusyError: if another process keeps the lock longer than :data:`LOCK_BUDGET_S`.
    """
    fd = _open_checked(path)
    try:
        lock = _open_lock(fd, path / "lock")
        try:
            _wait_for_lock(lock, path / "lock")
            yield StateDirectory(fd, path)
        finally:
            os.close(lock)
    finally:
        os.close(fd)


def _open_checked(path: Path) -> int:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        why = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise RefusedError(
            f"the state directory {path} cannot be used: {why}",
            hint="run it as root"
            if isinstance(error, PermissionError)
            else "--state-dir names another; it must be a directory and no symbolic link",
        ) from error
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        os.close(fd)
        raise RefusedError(
            f"the state directory {path} belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}; "
            f"it must be uid {os.geteuid()}'s alone",
            # Not chmod: what somebody has mistyped may be a folder like /tmp, which others need as it is.
            hint="name another with --state-dir, or, if it is ours alone, give it that owner and mode 0700",
        )
    return fd


def _open_lock(directory: int, path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path.name, flags, 0o600, dir_fd=directory)
    except OSError as error:
        raise RefusedError(
            f"the lock {path} cannot be opened: {error.strerror}", hint="look what it is; it is a plain file of ours"
        ) from error


def _wait_for_lock(lock: int, path: Path) -> None:
    deadline = Deadline.after("lock of the state directory", LOCK_BUDGET_S)
    if not deadline.poll(lambda: try_lock(lock, str(path))):
        raise BusyError(
            f"another vfio-intx has held {path} for more than {deadline.budget_s:g} s", hint=f"fuser -v {path}"
        )


def read_all(state: StateDirectory) -> tuple[tuple[Record, ...], tuple[VfioIntxError, ...]]:
    """Every record that can be trusted, and why each of the others cannot."""
    good: list[Record] = []
    bad: list[VfioIntxError] = []
    for bdf in state.recorded():
        try:
            record = state.read(bdf)
        except BadRecord as error:
            bad.append(error)
        else:
            good += [record] if record is not None else []
    return tuple(good), tuple(bad)
