"""The pure parts of schemes and bench: the userspace IOAPIC, the rounds, the figures and the picture."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.abi.kvm import MsiRoute
from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.bench import LONGEST_ROUND, contests, rounds_of
from vfio_intx.microvm.chart import bar_length, svg
from vfio_intx.microvm.figures import BenchFigures, CeilingFigures, Percentiles, RoundTrips, SchemeFigures, payload
from vfio_intx.microvm.guest import Pin
from vfio_intx.microvm.ioapic import UserspaceIoapic


def _program(ioapic: UserspaceIoapic, pin: int, low: int, high: int = 0) -> bool:
    ioapic.write(0, 0x10 + 2 * pin + 1)
    ioapic.write(0x10, high)
    ioapic.write(0, 0x10 + 2 * pin)
    return ioapic.write(0x10, low)


def test_every_pin_is_masked_at_first() -> None:
    assert UserspaceIoapic().routes() == []


def test_a_programmed_pin_becomes_a_route() -> None:
    ioapic = UserspaceIoapic()
    assert _program(ioapic, 20, 0x8040, high=3 << 24)
    assert ioapic.routes() == [MsiRoute(20, 0x40, level=True, destination=3)]
    assert ioapic.level_pins(0x40) == [20]
    assert ioapic.level_pins(0x41) == []


def test_masking_a_pin_takes_its_route_away() -> None:
    ioapic = UserspaceIoapic()
    _program(ioapic, 5, 0x8055)
    assert _program(ioapic, 5, 0x18055)
    assert ioapic.routes() == []
    assert ioapic.level_pins(0x55) == []


def test_an_edge_pin_has_a_route_but_no_eoi() -> None:
    ioapic = UserspaceIoapic()
    _program(ioapic, 7, 0x47)
    assert ioapic.routes() == [MsiRoute(7, 0x47)]
    assert ioapic.level_pins(0x47) == []


def test_selecting_a_register_changes_no_route_and_reads_back() -> None:
    ioapic = UserspaceIoapic()
    assert not ioapic.write(0, 0x38)
    assert ioapic.read(0) == 0x38
    assert ioapic.read(0x10) == 1 << 16
    ioapic.write(0, 1)
    assert ioapic.read(0x10) >> 16 & 0xFF == 23


@given(st.lists(st.tuples(st.integers(0, 0x1000), st.integers(0, 2**32 - 1))))
def test_no_access_breaks_it(accesses: list[tuple[int, int]]) -> None:
    ioapic = UserspaceIoapic()
    for offset, value in accesses:
        ioapic.write(offset, value)
        assert 0 <= ioapic.read(offset) < 2**32
    assert all(0 <= route.gsi < 24 for route in ioapic.routes())


@given(st.integers(1, 10_000_000))
def test_rounds_add_up_and_are_nearly_equal(count: int) -> None:
    rounds = rounds_of(count)
    assert sum(rounds) == count
    assert max(rounds) - min(rounds) <= 1
    assert max(rounds) <= LONGEST_ROUND


def test_split_has_no_pic() -> None:
    rows = contests(list(Scheme))
    assert (Scheme.SPLIT, Pin.IOAPIC) in rows
    assert (Scheme.SPLIT, Pin.PIC) not in rows
    assert len(rows) == 9


def test_lost_round_trips_are_no_round_trips() -> None:
    trips = RoundTrips()
    trips.add(array("Q", [0, 50_000, 0, 70_000, 999_999_999]), 4)
    found = trips.percentiles()
    assert found is not None
    assert 49.9 < found.p50 < 50.2
    assert 69.9 < found.max < 70.2


def test_nothing_has_no_percentiles() -> None:
    trips = RoundTrips()
    trips.add(array("Q", [0, 0]), 2)
    assert trips.percentiles() is None


def _figures() -> BenchFigures:
    irqfd = SchemeFigures(Scheme.IRQFD, Pin.IOAPIC, triggers=10, acknowledged=10, handler_runs=10, seconds=0.5)
    irqfd.round_trip = Percentiles(20.0, 40.0, 80.0, 100.0)
    trap = SchemeFigures(Scheme.TRAP, Pin.IOAPIC, triggers=10, acknowledged=10, handler_runs=12, wakeups=40, seconds=1)
    trap.round_trip = Percentiles(50.0, 60.0, 90.0, 120.0)
    edge = SchemeFigures(Scheme.EDGE, Pin.PIC, triggers=20, lost=20)
    return BenchFigures([irqfd, trap, edge], CeilingFigures(20, 46_000, 1.0), partial=False)


def test_the_payload_has_what_programs_were_promised() -> None:
    made = payload(_figures(), {"kernel": "6.1"})
    assert made["host"] == {"kernel": "6.1"}
    assert made["ceiling"] == {"rate_per_s": 46000.0, "interrupts": 46000, "seconds": 1.0, "pin": "ioapic", "gsi": 20}
    rows = made["schemes"]
    assert isinstance(rows, list)
    promised = {"scheme", "pin", "triggers", "handler_runs", "acknowledged", "lost", "repeated"}
    promised |= {"vmm_wakeups_per_interrupt", "round_trip_us", "rate_per_s", "ratio_to_irqfd"}
    assert all(promised <= row.keys() for row in rows)
    irqfd, trap, edge = rows
    assert irqfd["ratio_to_irqfd"] == {"p50": 1.0, "p99": 1.0}
    assert irqfd["rate_per_s"] == 20.0
    assert trap["ratio_to_irqfd"] == {"p50": 2.5, "p99": 1.5}
    assert trap["vmm_wakeups_per_interrupt"] == 4.0
    assert edge["round_trip_us"] == {"p50": None, "p99": None, "p999": None, "max": None}
    assert edge["ratio_to_irqfd"] == {"p50": None, "p99": None}


def test_a_run_without_irqfd_has_no_ratios() -> None:
    figures = _figures()
    alone = BenchFigures(figures.schemes[1:2], None, partial=True)
    made = payload(alone, {})
    assert made["partial"] is True
    assert made["ceiling"] is None
    assert alone.ratios(alone.schemes[0]) is None


def test_figures_of_nothing_divide_nothing_by_zero() -> None:
    row = SchemeFigures(Scheme.IRQFD, Pin.PIC)
    assert row.rate == 0.0
    assert row.wakeups_per_interrupt == 0.0
    assert CeilingFigures(20).rate == 0.0


def test_the_picture_is_well_formed_and_names_every_row() -> None:
    picture = svg(_figures(), "a <title> & more")
    root = ElementTree.fromstring(picture)
    texts = [element.text or "" for element in root.iter() if element.tag.endswith("text")]
    assert "a <title> & more" in texts
    assert "trap (ioapic)" in texts
    assert "nothing ever came back" in texts
    assert "50.0 / 60.0" in texts


def test_a_picture_of_nothing_is_a_picture() -> None:
    ElementTree.fromstring(svg(BenchFigures([SchemeFigures(Scheme.EDGE, Pin.PIC)], None, partial=True), "t"))


@pytest.mark.parametrize(
    ("value", "longest", "cells"), [(0, 10, 0), (0.001, 10, 1), (10, 10, 40), (5, 10, 20), (1, 0, 0)]
)
def test_bars(value: float, longest: float, cells: int) -> None:
    assert bar_length(value, longest, 40) == cells
