"""Every interrupt into a file, as it is seen: one JSON object a line, or a trace for Perfetto and chrome://tracing.

The page and the JSON of a whole run go the same way (:class:`WholeFile`). A file appears under its name only when it
is whole: until then it is ``NAME.part``, which is removed when something goes wrong. What is no file (``/dev/null``, a
pipe) is written to as it is, since a file that took its name would take it away from everybody else. Nothing is held
back in memory, so an hour costs as much memory as a second.

The Chrome trace-event format is described in "Trace Event Format" (Google, document of the Catapult project): complete
events (``ph`` "X") with times in microseconds, metadata ("M") that names processes and tracks, instants ("i").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from vfio_intx.chain.stage import Stage
from vfio_intx.errors import KernelError
from vfio_intx.observe.report import span_json
from vfio_intx.observe.span import CHAIN, Anomaly, Span

_WHOLE = "interrupt"
#: So many track numbers has a lane. An interrupt that begins before the last one is over goes into another.
_LANE = 20
_encode = msgspec.json.encode


class Export:
    """A file that grows with the run. Context manager: whole at the end of the block, gone if the block raises.

    A symbolic link stays one: what it points to is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part: Path | None = None
        self._file: BinaryIO | None = None
        self._failure: KernelError | None = None

    @property
    def failure(self) -> KernelError | None:
        """What a write has failed with; nothing is kept of the file then, however its block ends."""
        return self._failure

    def __enter__(self) -> Self:
        try:
            if self._path.exists() and not self._path.is_file():
                self._file = self._path.open("wb")
            else:
                whole = self._path.resolve()
                self._part = whole.with_name(whole.name + ".part")
                self._file = self._part.open("wb")
        except OSError as error:
            raise self._failed("open", error) from error
        self._write(self._head())
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        is_whole = kind is None and self._failure is None
        try:
            if is_whole:
                file.write(self._tail())
            file.close()
            if is_whole and self._part is not None:
                self._part.replace(self._path.resolve())
        except OSError as error:
            if is_whole:
                raise self._failed("write", error) from error
        finally:
            if self._part is not None:
                self._part.unlink(missing_ok=True)

    def add(self, spans: Sequence[Span]) -> None:
        """Write finished spans. :raise KernelError: ENOSPC and the like; the part is removed with the block."""
        self._write(b"".join(self._lines(spans)))

    def note(self, anomalies: Iterable[Anomaly]) -> None:
        """Write what was odd, at the end of a run."""
        self._write(b"".join(self._notes(anomalies)))

    def _write(self, data: bytes) -> None:
        if self._file is None:
            raise ValueError("the export is not open")
        try:
            self._file.write(data)
        except OSError as error:
            self._failure = self._failed("write", error)
            raise self._failure from error

    def _failed(self, operation: str, error: OSError) -> KernelError:
        hint = "nothing incomplete was left; name one in a folder that there is, with room"
        return KernelError(operation, str(self._path), error.errno or 0, hint=hint)

    def _head(self) -> bytes:
        return b""

    def _tail(self) -> bytes:
        return b""

    def _lines(self, spans: Sequence[Span]) -> Iterable[bytes]:
        return ()

    def _notes(self, anomalies: Iterable[Anomaly]) -> Iterable[bytes]:
        return ()


class WholeFile(Export):
    """A file that is written at the end of a run, but opened at its start: a name that cannot be is told before it."""

    def put(self, data: bytes) -> None:
        """Write *data*. :raise KernelError: as :meth:`add`."""
        self._write(data)


class SpansFile(Export):
    """One JSON object a line: the fields of :func:`~vfio_intx.observe.report.span_json`."""

    def _lines(self, spans: Sequence[Span]) -> Iterable[bytes]:
        for span in spans:
            yield _encode(span_json(span)) + b"\n"


class PerfettoFile(Export):
    """Chrome trace-event JSON: one track for the line's whole interrupts, one for each stage, one for anomalies.

    Slices of one track must not overlap, so interrupts that do have tracks of their own: as many lanes as were needed.
    """

    def __init__(self, path: Path, line: str) -> None:
        super().__init__(path)
        self._line = line
        self._busy_until = [0]

    def _head(self) -> bytes:
        named = [_metadata("process_name", 0, {"name": self._line}), *_named(len(CHAIN) + 1, "anomalies"), *_lane(0)]
        return b'{"displayTimeUnit":"ns","traceEvents":[\n' + b",\n".join(_encode(item) for item in named)

    def _tail(self) -> bytes:
        return b"\n]}\n"

    def _lines(self, spans: Sequence[Span]) -> Iterable[bytes]:
        for span in spans:
            milestones = span.milestones()
            start = milestones[0][1]
            lane = next((lane for lane, end in enumerate(self._busy_until) if end <= start), len(self._busy_until))
            if lane == len(self._busy_until):
                self._busy_until.append(0)
                yield b"".join(b",\n" + _encode(item) for item in _lane(lane))
            self._busy_until[lane] = span.end
            first = lane * _LANE
            yield _complete(_WHOLE, first, start, span.end - start, {"n": span.number, "vector": span.vector})
            before = start
            for stage, moment in milestones[1:]:
                yield _complete(stage.value, first + stage.number, before, moment - before, {"n": span.number})
                before = moment

    def _notes(self, anomalies: Iterable[Anomaly]) -> Iterable[bytes]:
        for anomaly in anomalies:
            event = {"name": anomaly.oddity.value, "ph": "i", "s": "p", "pid": 1, "tid": len(CHAIN) + 1}
            yield b",\n" + _encode({**event, "ts": anomaly.time / 1000, "args": {"detail": anomaly.detail}})


def _lane(lane: int) -> Iterable[dict[str, object]]:
    overlapping = f" (overlapping {lane})" if lane else ""
    for number, name in ((0, _WHOLE), *((stage.number, stage.value) for stage in CHAIN)):
        yield from _named(number + lane * _LANE, name + overlapping)


def _named(track: int, name: str) -> Iterable[dict[str, object]]:
    yield _metadata("thread_name", track, {"name": name})
    yield _metadata("thread_sort_index", track, {"sort_index": track})


def _metadata(what: str, track: int, arguments: dict[str, object]) -> dict[str, object]:
    return {"name": what, "ph": "M", "pid": 1, "tid": track, "ts": 0, "args": arguments}


def _complete(name: str, track: int, start: int, duration: int, arguments: dict[str, int]) -> bytes:
    event = {"name": name, "cat": "intx", "ph": "X", "pid": 1, "tid": track, "ts": start / 1000, "dur": duration / 1000}
    return b",\n" + _encode({**event, "args": arguments})


#: The stages that no tracepoint shows, for whoever explains a table.
UNSEEN = (Stage.DEVICE, Stage.UNMASK)
