"""The round trips as a picture: an SVG file written by hand, so that no plotting library is needed. Pure."""

from __future__ import annotations

import math
from html import escape

from vfio_intx.microvm.figures import BenchFigures, SchemeFigures

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BAR = 860, 190, 130, 64, 34, 18
_COLOURS = {"p50": "#2b6cb0", "p99": "#90cdf4"}
_FONT = 'font-family="sans-serif" font-size="13"'


def bar_length(value: float, longest: float, cells: int) -> int:
    """How many of *cells* stand for *value* on a scale from 0 to *longest*; at least one for anything above 0."""
    return max(1, round(value / longest * cells)) if value > 0 and longest > 0 else 0


def svg(figures: BenchFigures, title: str) -> str:
    """Bars of p50 (dark) and p99 (light) for each scheme and pin, on a logarithmic scale in microseconds."""
    rows = figures.schemes
    height = _TOP + _ROW * len(rows) + 46
    trips = [row.round_trip for row in rows if row.round_trip is not None]
    least = 10 ** math.floor(math.log10(min((trip.p50 for trip in trips), default=10)))
    most = 10 ** math.ceil(math.log10(max((trip.p99 for trip in trips), default=1000)))
    most = max(most, least * 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" {_FONT}>',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="12" y="44" fill="#555">round trip in microseconds (logarithmic): '
        f'<tspan fill="{_COLOURS["p50"]}">p50</tspan>, <tspan fill="#4299e1">p99</tspan></text>',
        *_grid(least, most, height),
    ]
    for place, row in enumerate(rows):
        parts += _bars(row, _TOP + _ROW * place, least, most)
    return "\n".join([*parts, "</svg>", ""])


def _across(value: float, least: float, most: float) -> float:
    share = (math.log10(max(value, least)) - math.log10(least)) / (math.log10(most) - math.log10(least))
    return share * (_WIDTH - _LEFT - _RIGHT)


def _grid(least: float, most: float, height: int) -> list[str]:
    lines, tick = [], least
    while tick <= most:
        x = _LEFT + _across(tick, least, most)
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{height - 34}" stroke="#ddd"/>')
        lines.append(f'<text x="{x:.1f}" y="{height - 16}" text-anchor="middle" fill="#555">{tick:g}</text>')
        tick *= 10
    return lines


def _bars(row: SchemeFigures, y: float, least: float, most: float) -> list[str]:
    label = f'<text x="{_LEFT - 10}" y="{y + 14}" text-anchor="end">{row.scheme.value} ({row.pin.label})</text>'
    trip = row.round_trip
    if trip is None:
        return [label, f'<text x="{_LEFT + 6}" y="{y + 14}" fill="#c53030">nothing ever came back</text>']
    far, near = (_across(value, least, most) for value in (trip.p99, trip.p50))
    said = f"{trip.p50:.1f} / {trip.p99:.1f}"
    return [
        label,
        f'<rect x="{_LEFT}" y="{y}" width="{far:.1f}" height="{_BAR}" fill="{_COLOURS["p99"]}"/>',
        f'<rect x="{_LEFT}" y="{y}" width="{near:.1f}" height="{_BAR}" fill="{_COLOURS["p50"]}"/>',
        f'<text x="{_LEFT + far + 6:.1f}" y="{y + 14}">{said}</text>',
    ]
