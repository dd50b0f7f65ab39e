"""Exact counts of tracepoints, by the kernel's own histograms: nothing to read along, nothing that can overflow.

A histogram trigger (``Documentation/trace/histogram.rst``) counts hits by the values of an event's fields, in the
kernel. The product's tracing keeps the events themselves; a second witness should not share its code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vfio_intx.errors import MissingError

_TRACEFS = Path("/sys/kernel/tracing")
_ROW = re.compile(r"^\{(?P<keys>[^}]*)\} hitcount: +(?P<hits>[0-9]+)", re.MULTILINE | re.ASCII)
_KEY = re.compile(r"(\w+): +([^,]*[^,\s])", re.ASCII)
#: A table that is full counts what it dropped; with so many entries none of ours is.
_DROPPED = re.compile(r"^ *Dropped: +([0-9]+)", re.MULTILINE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Count:
    """One row: the values of the keys, as the kernel prints them, and how often they were seen."""

    keys: Mapping[str, str]
    hits: int


class TraceCount:
    """Counts while the context is open. :raise MissingError: this kernel has no histogram triggers."""

    def __init__(self, name: str, events: Mapping[str, str]) -> None:
        """*events*: ``group/event`` -> the fields to count by, comma separated."""
        self._instance = _TRACEFS / "instances" / name
        self._events = dict(events)

    def __enter__(self) -> TraceCount:
        self._instance.mkdir()
        try:
            for event, keys in self._events.items():
                self._trigger(event, f"hist:keys={keys}")
        except BaseException:
            self.close()
            raise
        return self

    def _trigger(self, event: str, words: str) -> None:
        path = self._instance / "events" / event / "trigger"
        try:
            path.write_text(words, "ascii")
        except OSError as error:
            raise MissingError(
                f"tracefs refuses {words!r} for {event}: {error.strerror}", hint="it needs CONFIG_HIST_TRIGGERS"
            ) from error

    def read(self, event: str) -> list[Count]:
        """The rows of an event so far. :raise MissingError: the kernel dropped some."""
        text = (self._instance / "events" / event / "hist").read_text("ascii", "replace")
        return parse_hist(text)

    def total(self, event: str, **wanted: str) -> int:
        """Hits of an event over all rows whose keys have the values *wanted*."""
        return sum(row.hits for row in self.read(event) if wanted.items() <= row.keys.items())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the triggers off and remove the instance."""
        for event in self._events:
            path = self._instance / "events" / event / "trigger"
            for line in path.read_text("ascii", "replace").splitlines():
                if line.startswith("hist:"):
                    path.write_text(f"!{line.partition(' [')[0]}", "ascii")
        self._instance.rmdir()


def parse_hist(text: str) -> list[Count]:
    """The rows of a ``hist`` file. :raise MissingError: the kernel says that it dropped some. Pure."""
    dropped = _DROPPED.search(text)
    if dropped and int(dropped[1]):
        raise MissingError(f"the kernel's histogram dropped {dropped[1]} entries")
    return [Count(dict(_KEY.findall(row["keys"])), int(row["hits"])) for row in _ROW.finditer(text)]
