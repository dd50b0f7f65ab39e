"""Tracepoints as the kernel describes and stores them: event formats, ring-buffer pages, per-CPU statistics. Pure.

Nothing about an event is assumed. Offsets, sizes and signs come from its ``format`` file, the place of a page's data
from ``events/header_page``; a kernel that lacks a field we need is told so by name. What is assumed is the encoding
of a record's head, which ``events/header_event`` states and :func:`parse_header_event` checks.

Sources: ``kernel/trace/ring_buffer.c`` and ``include/linux/ring_buffer.h`` (record heads), ``kernel/trace/trace.c``
(``tracing_buffers_read``, ``tracing_stats_read``), ``tools/lib/traceevent/kbuffer-parse.c`` (the flags in commit).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vfio_intx.errors import MissingError, VerifyError

#: (time in ns of the instance's clock, kind, CPU, fields): the fields are the thread that it happened in, then those
#: asked for. Plain tuples, the inner one made by :mod:`struct`: an event costs as little as Python allows.
Event = tuple[int, int, int, tuple[int, ...]]

_FIELD = re.compile(
    r"^\tfield:(?P<declaration>[^;]+);\toffset:(?P<offset>[0-9]{1,5});\tsize:(?P<size>[0-9]{1,5});"
    r"(?:\tsigned:(?P<signed>[01]);)?$",
    re.MULTILINE | re.ASCII,
)
_NAME = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:\[[^\]]*\])?$", re.ASCII)
_ID = re.compile(r"^ID: ([0-9]{1,5})$", re.MULTILINE | re.ASCII)
_EVENT_NAME = re.compile(r"^name: ([A-Za-z0-9_]{1,64})$", re.MULTILINE | re.ASCII)
_STATISTIC = re.compile(r"^([a-z ]+): +([0-9]+)$", re.MULTILINE | re.ASCII)
_HEAD_CLAIMS = (
    r"type_len\s*:\s*5 bits",
    r"time_delta\s*:\s*27 bits",
    r"array\s*:\s*32 bits",
    r"padding\s*:\s*type == 29",
    r"time_extend\s*:\s*type == 30",
    r"time_stamp\s*:\s*type == 31",
    r"data max type_len\s*==\s*28",
)
_LETTERS = {(1, False): "B", (1, True): "b", (2, False): "H", (2, True): "h"}
_LETTERS |= {(4, False): "I", (4, True): "i", (8, False): "Q", (8, True): "q"}

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_STAMP_BITS = 59
#: Bits of the commit word: events were lost before this page, and their number is stored behind the data.
_MISSED, _MISSED_STORED = 1 << 31, 1 << 30
_COMMIT_LENGTH = (1 << 27) - 1


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event or page: its place in bytes from the record's start."""

    name: str
    offset: int
    size: int
    signed: bool


@dataclass(frozen=True, slots=True)
class EventFormat:
    """An event as its ``format`` file describes it."""

    name: str
    identity: int
    fields: Mapping[str, Field]


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Where a page of ``trace_pipe_raw`` keeps its head: byte offsets, and the size of the commit word."""

    timestamp: int
    commit: int
    commit_size: int
    data: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to take from one kind of event: integer fields, in the order they lie in it."""

    kind: int
    format: EventFormat
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PageResult:
    """What one page told beside its events.

    :ivar missed: events lost just before the page; None where the kernel knows only that there were some.
    :ivar damaged: the page contradicts itself; the events before that place were taken, the rest was left.
    :ivar time: when the page begins, 0 for one that is too short to tell.
    """

    missed: int | None
    damaged: bool
    time: int = 0


@dataclass(frozen=True, slots=True)
class CpuStatistics:
    """One CPU's ``stats``: what the kernel counts itself, in events (``bytes`` aside)."""

    entries: int
    overrun: int
    commit_overrun: int
    dropped: int
    read: int
    bytes: int

    @property
    def lost(self) -> int:
        """Events that were overwritten or never written."""
        return self.overrun + self.commit_overrun + self.dropped


def _parse_fields(text: str) -> dict[str, Field]:
    fields = {}
    for match in _FIELD.finditer(text):
        named = _NAME.search(match["declaration"].strip())
        if named:
            signed = match["signed"] == "1"
            fields[named["name"]] = Field(named["name"], int(match["offset"]), int(match["size"]), signed)
    return fields


def parse_format(text: str) -> EventFormat:
    """An event's ``format`` file. :raise VerifyError: it is not one, or lacks the common fields every event has."""
    name, identity, fields = _EVENT_NAME.search(text), _ID.search(text), _parse_fields(text)
    if not (name and identity and {"common_type", "common_pid"} <= fields.keys()):
        raise VerifyError("an event's format file does not read as one", hint="report it with the file's content")
    if (fields["common_type"].offset, fields["common_type"].size) != (0, 2):
        raise VerifyError(f"event {name[1]} keeps its type in an unknown place")
    return EventFormat(name[1], int(identity[1]), fields)


def parse_header_page(text: str) -> PageLayout:
    """``events/header_page``. :raise VerifyError: it lacks one of timestamp, commit, data."""
    fields = _parse_fields(text)
    if not {"timestamp", "commit", "data"} <= fields.keys() or fields["commit"].size not in (4, 8):
        raise VerifyError("events/header_page does not describe a page", hint="report it with the file's content")
    return PageLayout(fields["timestamp"].offset, fields["commit"].offset, fields["commit"].size, fields["data"].offset)


def parse_header_event(text: str) -> None:
    """Check that records are headed as this module reads them. :raise VerifyError: they are not."""
    for claim in _HEAD_CLAIMS:
        if not re.search(claim, text):
            raise VerifyError(f"this kernel heads its trace records differently: no {claim!r} in events/header_event")


def parse_statistics(text: str) -> CpuStatistics:
    """A CPU's ``stats`` file; a line that a kernel does not have counts as 0. :raise VerifyError: no entries line."""
    found = {match[1]: int(match[2]) for match in _STATISTIC.finditer(text)}
    if "entries" not in found:
        raise VerifyError("a CPU's trace statistics do not read as such")
    names = ("entries", "overrun", "commit overrun", "dropped events", "read events", "bytes")
    return CpuStatistics(*(found.get(name, 0) for name in names))


class PageDecoder:
    """Turns pages of ``trace_pipe_raw`` into :data:`Event` tuples; events of other types are passed over.

    :raise MissingError: (on making it) a wanted field that the kernel's format does not have.
    """

    def __init__(self, layout: PageLayout, wanted: Iterable[Wanted]) -> None:
        self._layout = layout
        self._head = struct.Struct("<Q").unpack_from
        self._unpack = {want.format.identity: (want.kind, _unpacker(want), _least(want)) for want in wanted}

    def decode(self, page: bytes | bytearray | memoryview, cpu: int, out: list[Event]) -> PageResult:
        """Append the events of one whole page to *out*, oldest first. Never raises for what the page holds."""
        layout = self._layout
        if len(page) < layout.data or len(page) % 4:
            return PageResult(0, True)
        (time,) = self._head(page, layout.timestamp)
        commit = int.from_bytes(page[layout.commit : layout.commit + layout.commit_size], "little")
        end = layout.data + (commit & _COMMIT_LENGTH)
        if end > len(page) or end % 4:
            return PageResult(0, True, time)
        whole = self._records(page, layout.data >> 2, end >> 2, time, cpu, out)
        return PageResult(_missed(page, commit, end), not whole, time)

    def _records(
        self, page: bytes | bytearray | memoryview, place: int, end: int, time: int, cpu: int, out: list[Event]
    ) -> bool:
        """Walk the records from word *place* to word *end*; False where they run over it."""
        words = memoryview(page).cast("I")
        halves = memoryview(page).cast("H")
        unpack, append = self._unpack.get, out.append
        last = end - 1
        while place < end:
            head = words[place]
            kind = head & 31
            if 0 < kind < _PADDING:  # by far the most: a record whose length in words is its type
                time += head >> 5
                after = place + kind + 1
                if after > end:
                    return False
                found = unpack(halves[place + place + 2])
                if found is not None:
                    if kind < found[2]:
                        return False
                    append((time, found[0], cpu, found[1](page, (place + 1) << 2)))
                place = after
            elif place == last:
                return kind == _PADDING
            elif kind == _TIME_EXTEND:
                time += (head >> 5) + (words[place + 1] << 27)
                place += 2
            elif kind == _TIME_STAMP:
                time = time >> _STAMP_BITS << _STAMP_BITS | (head >> 5) + (words[place + 1] << 27)
                place += 2
            elif kind == _PADDING:
                if not head >> 5:
                    return True
                # A discarded record. Its time is not counted: neither does the kernel (rb_update_read_stamp).
                place += 1 + (words[place + 1] + 3 >> 2)
            else:  # type 0: a record longer than 28 words, its length in bytes, that word included, in the next word
                time += head >> 5
                after = place + 1 + (words[place + 1] + 3 >> 2)
                if after > end or after < place + 3:
                    return False
                found = unpack(halves[place + place + 4])
                if found is not None:
                    if after - place - 2 < found[2]:
                        return False
                    append((time, found[0], cpu, found[1](page, (place + 2) << 2)))
                place = after
        return place == end


def data_end(layout: PageLayout, page: bytes) -> int:
    """Where a page's data ends, in bytes from its start; behind it lies whatever was in the memory before."""
    commit = int.from_bytes(page[layout.commit : layout.commit + layout.commit_size], "little")
    stored = 8 if commit & _MISSED_STORED else 0
    return min(len(page), layout.data + (commit & _COMMIT_LENGTH) + stored)


def _missed(page: bytes | bytearray | memoryview, commit: int, end: int) -> int | None:
    if not commit & _MISSED:
        return 0
    if commit & _MISSED_STORED and end + 8 <= len(page):
        return int.from_bytes(page[end : end + 8], "little")
    return None


def _unpacker(want: Wanted) -> Callable[[bytes | bytearray | memoryview, int], tuple[Any, ...]]:
    """The bound ``unpack_from`` that takes thread and wanted fields out of a record in one go."""
    places = [want.format.fields["common_pid"], *_places(want)]
    if places != sorted(places, key=lambda field: field.offset):
        raise VerifyError(f"event {want.format.name} keeps {want.fields} in another order; ask for them in its order")
    layout, at = "<", 0
    for field in places:
        letter = _LETTERS.get((field.size, field.signed))
        if letter is None or field.offset < at:
            raise VerifyError(f"event {want.format.name} keeps {field.name} in a form that is not a number")
        layout += f"{field.offset - at}x{letter}"
        at = field.offset + field.size
    return struct.Struct(layout).unpack_from


def _places(want: Wanted) -> Sequence[Field]:
    for name in want.fields:
        if name not in want.format.fields:
            raise MissingError(
                f"event {want.format.name} of this kernel has no field {name}",
                hint=f"its format file lists {', '.join(want.format.fields)}; report it with the kernel's version",
            )
    return [want.format.fields[name] for name in want.fields]


def _least(want: Wanted) -> int:
    """The least length in words of a record that holds all that is wanted."""
    return max(field.offset + field.size for field in (want.format.fields["common_pid"], *_places(want))) + 3 >> 2
