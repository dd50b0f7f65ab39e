"""Latencies of any number of interrupts in a bounded space, and their percentiles.

A value is kept to eleven significant bits (one part in a thousand), as an HdrHistogram of three digits does; there are
then never more than some ten thousand different ones. They are counted a list at a time, which Python does in C.
Percentiles are HdrHistogram's own, made when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

_KEPT_BITS = 11
_HIGHEST_NS = 3_600_000_000_000


class Latencies:
    """A growing distribution of durations in nanoseconds. ``total`` and ``most`` are exact."""

    __slots__ = ("count", "counts", "most", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.most = 0

    def extend(self, durations: Sequence[int]) -> None:
        """Count some durations (ns); a negative one counts as zero."""
        if not durations:
            return
        counts = self.counts
        for ns, count in Counter(durations).items():
            shift = ns.bit_length() - _KEPT_BITS
            key = ns >> shift << shift if shift > 0 else max(ns, 0)
            counts[key] = counts.get(key, 0) + count
        self.count += len(durations)
        self.total += sum(durations)
        self.most = max(self.most, *durations) if len(durations) > 1 else max(self.most, durations[0])

    def microseconds(self) -> Mapping[str, float]:
        """``p50``, ``p90``, ``p99``, ``p999`` and ``max`` in microseconds; empty if nothing was counted."""
        if not self.count:
            return {}
        from hdrh.histogram import HdrHistogram

        histogram = HdrHistogram(1, _HIGHEST_NS, 3)
        for value, count in self.counts.items():
            histogram.record_value(min(max(value, 1), _HIGHEST_NS), count)
        named = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
        found = {name: _us(min(histogram.get_value_at_percentile(of), self.most)) for name, of in named.items()}
        return {**found, "max": _us(self.most)}

    def buckets(self, per_decade: int = 10) -> list[tuple[float, int]]:
        """For drawing: (upper edge in microseconds, count), edges evenly spaced on a log scale, no empty ends."""
        if not self.count:
            return []
        grouped: dict[int, int] = {}
        for value, count in self.counts.items():
            place = _place(value, per_decade)
            grouped[place] = grouped.get(place, 0) + count
        first, last = min(grouped), max(grouped)
        return [(10 ** (place / per_decade) / 1000, grouped.get(place, 0)) for place in range(first, last + 1)]


def _place(ns: int, per_decade: int) -> int:
    from math import ceil, log10

    return ceil(log10(max(ns, 1)) * per_decade)


def _us(ns: float) -> float:
    return round(ns / 1000, 3)
