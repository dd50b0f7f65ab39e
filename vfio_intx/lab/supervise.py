"""Run a long process in a group of its own, with an end in sight: its output followed, its death certain.

The process never outlives us, however we die. Its parent is a small shell that waits for the end of a pipe whose
other end only we hold: when that closes, for whatever reason, the shell kills its whole group. (A parent-death signal
would reach only the first process; QEMU is a grandchild of it.)
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vfio_intx.deadline import Deadline

#: $1… is the command. fd 0 is the life line; the reader of it ends with everybody else by its own hand.
_WATCH = '"$@" < /dev/null & child=$!; exec 3<&0; { read -r _ <&3; kill -KILL 0; } & wait "$child"; exit "$?"'

_TICK_S = 0.05
_LONGEST_LINE = 4096
_TAIL_LINES = 30

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended. ``status`` is None if the deadline passed and it was killed; ``tail`` its last lines."""

    status: int | None
    tail: tuple[str, ...]


class Lines:
    """Bytes in, whole lines out; a line longer than 4096 bytes is cut there."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        """The lines that *data* completes, without their ends."""
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_LONGEST_LINE]
        for line in whole:
            yield line[:_LONGEST_LINE].rstrip(b"\r").decode("utf-8", "replace")


class Follower:
    """A file that another process appends to, perhaps not there yet, read as lines."""

    def __init__(self, path: Path, on_line: OnLine) -> None:
        self._path = path
        self._on_line = on_line
        self._lines = Lines()
        self._file: IO[bytes] | None = None

    def look(self) -> None:
        """Hand on every line that has come since the last look."""
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return
        while data := self._file.read(1 << 16):
            for line in self._lines.feed(data):
                self._on_line(line)

    def close(self) -> None:
        """Look for the last time."""
        self.look()
        if self._file is not None:
            self._file.close()


def supervise(
    argv: Sequence[str],
    console: Path,
    deadline: Deadline,
    on_tick: Callable[[], None],
    *,
    environment: Mapping[str, str] | None = None,
    on_deadline: Callable[[], None] = lambda: None,
) -> Ended:
    """Run *argv* to its end or the deadline's; stderr goes to the file *console*, stdout nowhere.

    :param on_tick: called some twenty times a second.
    :param on_deadline: called once if the deadline has passed, while the process still runs.
    :return: never before the whole process group is dead, and so for every exception that *on_tick* raises, too.
    """
    process = subprocess.Popen(
        ["/bin/sh", "-c", _WATCH, "vfio-intx-lab", *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        assert process.stderr is not None
        with console.open("wb") as log:
            _follow(process, process.stderr, log, tail, deadline, on_tick)
        late = process.poll() is None
        if late:
            on_deadline()
    finally:
        _kill_group(process)
    on_tick()
    # As a shell tells of a child that somebody else has killed.
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Ended(None if late else status, tuple(tail))


def _follow(
    process: subprocess.Popen[bytes],
    stream: IO[bytes],
    log: IO[bytes],
    tail: deque[str],
    deadline: Deadline,
    on_tick: Callable[[], None],
) -> None:
    lines = Lines()
    os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while process.poll() is None and not deadline.passed():
            if selector.select(min(_TICK_S, deadline.left())) and not _drain(stream, log, lines, tail):
                break
            on_tick()
        while process.poll() is None and not deadline.passed():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(_TICK_S, max(deadline.left(), 0.001)))
            on_tick()
    _drain(stream, log, lines, tail)


def _drain(stream: IO[bytes], log: IO[bytes], lines: Lines, tail: deque[str]) -> bool:
    """Move what has come from *stream* to *log*; False at its end."""
    while True:
        try:
            data = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            log.flush()
            return True
        if not data:
            return False
        log.write(data)
        tail.extend(lines.feed(data))


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group and reap our child. The group's number is ours until we have waited."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
