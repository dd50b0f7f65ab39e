"""The tables of ``bench`` fit a terminal, whatever was counted."""

from __future__ import annotations

import pytest

from vfio_intx.chain.scheme import Scheme
from vfio_intx.cli.bench import _print_table
from vfio_intx.microvm.figures import BenchFigures, Percentiles, SchemeFigures
from vfio_intx.microvm.guest import Pin


def test_the_longest_run_fits_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    most, lost = 10_000_000, 20  # a scheme that loses more is out
    trip = Percentiles(12_345.6, 123_456.7, 1_234_567.8, 9_999_999.9)
    rows = [
        SchemeFigures(scheme, pin, most, 30 * most, most, lost, repeated=29 * most, wakeups=123 * most, seconds=500.0)
        for pin in Pin
        for scheme in Scheme
    ]
    for row in rows[1:]:
        row.round_trip = trip
    _print_table(BenchFigures(rows, None, False))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    table = "\n".join(lines)
    for shown in ("300000000", "290000000", "123.00", "12345.6", "10000000", "wake-ups", "p99 x"):
        assert shown in table
    assert len([line for line in lines if line.startswith("ack-eventfd")]) == 4
