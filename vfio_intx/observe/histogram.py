"""Latencies of any number of interrupts in a bounded space, and their percentiles.

A value is kept to eleven significant bits (one part in a thousand), as an HdrHistogram of three digits does; there are
then never more than some thousand different ones, so counting them is one addition to a dict, which Python can do a
million times a second. Percentiles are HdrHistogram's own, made when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping

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

    def add(self, ns: int) -> None:
        """Count one duration; below zero counts as zero."""
        if ns < 0:
            ns = 0
        shift = ns.bit_length() - _KEPT_BITS
        key = ns >> shift << shift if shift > 0 else ns
        counts = self.counts
        counts[key] = counts.get(key, 0) + 1
        self.count += 1
        self.total += ns
        if ns > self.most:
            self.most = ns

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
