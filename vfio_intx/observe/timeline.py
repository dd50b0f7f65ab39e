"""What the HTML page draws, kept in bounded space while a run goes on: a sample of whole interrupts, and the rate.

The sample is every k-th interrupt; when it is full, every second one is dropped and k doubled. So it stays spread
evenly over the run, whatever its length. The page shows the slowest interrupts besides; the summary keeps those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

import msgspec

from vfio_intx.observe.collect import Report
from vfio_intx.observe.report import span_json, to_json
from vfio_intx.observe.span import CHAIN, Span

_SAMPLE = 6000
_PLACES = ("page.css", "page.js")


class Timeline:
    """A sink for spans that keeps a sample of them."""

    def __init__(self, most: int = _SAMPLE) -> None:
        self._most = most
        self._every = 1
        self._seen = 0
        self.sample: list[Span] = []

    @property
    def every(self) -> int:
        """Of how many interrupts one is in the sample."""
        return self._every

    def add(self, spans: Sequence[Span]) -> None:
        """Take note of finished spans."""
        for span in spans:
            if self._seen % self._every == 0:
                self.sample.append(span)
                if len(self.sample) >= self._most:
                    del self.sample[1::2]
                    self._every *= 2
            self._seen += 1


def render(report: Report, timeline: Timeline, title: str, where: str = "") -> str:
    """The page: one HTML file that needs nothing else.

    :param where: a sentence for its foot: the kernel and the time, for whoever is sent the page.
    """
    data = {
        "title": title,
        "where": where,
        "report": to_json(report),
        "chain": [stage.value for stage in CHAIN],
        "histograms": {
            stage.value: latencies.buckets()
            for stage, latencies in zip(CHAIN, report.summary.by_stage, strict=True)
            if latencies.count
        },
        "whole": report.summary.whole.buckets(),
        "every": timeline.every,
        "sample": [_brief(span) for span in _drawn(report, timeline)],
    }
    return _fill(_asset("page.html"), {name: _asset(name) for name in _PLACES}, data)


def _drawn(report: Report, timeline: Timeline) -> list[Span]:
    spans = {span.number: span for span in (*timeline.sample, *report.summary.slowest())}
    return sorted(spans.values(), key=lambda span: span.start)


def _brief(span: Span) -> list[object]:
    """A span as short as a page with thousands of them wants it: number, start, [[stage, microseconds]...], odd?"""
    whole = span_json(span)
    places = {stage.value: place for place, stage in enumerate(CHAIN)}
    us = whole["us"]
    assert isinstance(us, Mapping)
    return [span.number, span.start, [[places[name], value] for name, value in us.items()], whole["oddities"]]


def _asset(name: str) -> str:
    return resources.files("vfio_intx.observe").joinpath("page", name).read_text("utf-8")


def _fill(page: str, assets: Mapping[str, str], data: Mapping[str, object]) -> str:
    # No tag and no comment can begin inside the script element, whatever a name of the data holds.
    encoded = msgspec.json.encode(data).decode().replace("<", "\\u003c")
    for name, text in assets.items():
        page = page.replace("{{" + name + "}}", text)
    return page.replace("{{data}}", encoded)
