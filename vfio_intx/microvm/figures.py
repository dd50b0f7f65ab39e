"""What a bench run comes to: counts, percentiles, and the JSON that programs read. Pure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.guest import Pin

#: Round trips are kept from 1 ns to 100 s with three significant digits.
_SHORTEST_NS, _LONGEST_NS, _DIGITS = 1, 100_000_000_000, 3


class RoundTrips:
    """A histogram of round trips: fixed memory (about 0.5 MiB), whatever the count."""

    def __init__(self) -> None:
        from hdrh.histogram import HdrHistogram

        self._histogram = HdrHistogram(_SHORTEST_NS, _LONGEST_NS, _DIGITS)

    def add(self, durations: array[int], count: int) -> None:
        """Take in the first *count* of some durations in ns; zeros stand for lost ones and are left out."""
        record = self._histogram.record_value
        for place in range(count):
            if durations[place]:
                record(durations[place])

    def percentiles(self) -> Percentiles | None:
        """p50, p99, p99.9 and the maximum; None of nothing."""
        if not self._histogram.get_total_count():
            return None
        values = self._histogram.get_percentile_to_value_dict([50, 99, 99.9])
        longest = self._histogram.get_max_value()
        return Percentiles(values[50] / 1000, values[99] / 1000, values[99.9] / 1000, longest / 1000)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Round trips in microseconds, to three significant digits."""

    p50: float
    p99: float
    p999: float
    max: float


@dataclass(slots=True)
class SchemeFigures:
    """One scheme on one pin.

    :ivar triggers: assertions of the card; ``acknowledged``: those whose line was unmasked and quiet again; ``lost``
        the others.
    :ivar handler_runs: runs of the guest's handler; ``repeated``: those that found nothing to do, because no
        assertion was new to them.
    :ivar late: acknowledged ones that took longer than allowed.
    :ivar refired: unmasks while the card still asserted, on each of which vfio fires again.
    :ivar early: whether KVM was seen to acknowledge before the guest's EOI; None where it was not tried.
    :ivar wakeups: wake-ups of the VMM in all, exits of its vCPU included. The card's are not: they are the kernel's.
    :ivar seconds: time spent in rounds, for the rate.
    :ivar notes: what a reader has to know about these figures.
    """

    scheme: Scheme
    pin: Pin
    triggers: int = 0
    handler_runs: int = 0
    acknowledged: int = 0
    lost: int = 0
    late: int = 0
    repeated: int = 0
    refired: int = 0
    early: bool | None = None
    wakeups: int = 0
    seconds: float = 0.0
    round_trip: Percentiles | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Interrupts a second that came through, one at a time."""
        return self.acknowledged / self.seconds if self.seconds else 0.0

    @property
    def wakeups_per_interrupt(self) -> float:
        """Wake-ups of the VMM for each assertion."""
        return self.wakeups / self.triggers if self.triggers else 0.0


@dataclass(slots=True)
class CeilingFigures:
    """The irqfd that re-fires itself: how many interrupts the guest's own counter showed, in how many seconds."""

    gsi: int
    interrupts: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Interrupts a second."""
        return self.interrupts / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class BenchFigures:
    """A whole run. ``partial`` says that it was interrupted; the figures are then those of the rounds that ended."""

    schemes: list[SchemeFigures]
    ceiling: CeilingFigures | None
    partial: bool

    def reference(self, pin: Pin) -> SchemeFigures | None:
        """``irqfd`` on that pin, which the others are compared with."""
        return next((row for row in self.schemes if row.scheme is Scheme.IRQFD and row.pin is pin), None)

    def ratios(self, row: SchemeFigures) -> tuple[float, float] | None:
        """p50 and p99 of *row* in terms of ``irqfd`` on the same pin; None where either has no round trip."""
        reference = self.reference(row.pin)
        if reference is None or reference.round_trip is None or row.round_trip is None:
            return None
        ours, theirs = row.round_trip, reference.round_trip
        return ours.p50 / theirs.p50, ours.p99 / theirs.p99


def payload(figures: BenchFigures, host: dict[str, object]) -> dict[str, object]:
    """What ``bench --json`` prints, without the schema. Round trips in microseconds, null where none came back."""
    ceiling = figures.ceiling
    return {
        "host": host,
        "partial": figures.partial,
        "ceiling": ceiling_payload(ceiling) if ceiling is not None else None,
        "schemes": [_row(figures, row) for row in figures.schemes],
    }


def ceiling_payload(ceiling: CeilingFigures) -> dict[str, object]:
    """The ceiling's object."""
    return {
        "rate_per_s": round(ceiling.rate, 1),
        "interrupts": ceiling.interrupts,
        "seconds": round(ceiling.seconds, 6),
        "pin": "ioapic",
        "gsi": ceiling.gsi,
    }


def _row(figures: BenchFigures, row: SchemeFigures) -> dict[str, object]:
    trip, ratios = row.round_trip, figures.ratios(row)
    return {
        "scheme": row.scheme.value,
        "pin": row.pin.label,
        "triggers": row.triggers,
        "handler_runs": row.handler_runs,
        "acknowledged": row.acknowledged,
        "lost": row.lost,
        "late": row.late,
        "repeated": row.repeated,
        "refired": row.refired,
        "acknowledged_early": row.early,
        "vmm_wakeups_per_interrupt": round(row.wakeups_per_interrupt, 4),
        "round_trip_us": {
            name: round(getattr(trip, name), 3) if trip is not None else None for name in ("p50", "p99", "p999", "max")
        },
        "rate_per_s": round(row.rate, 1),
        "ratio_to_irqfd": {
            "p50": round(ratios[0], 3) if ratios else None,
            "p99": round(ratios[1], 3) if ratios else None,
        },
        "notes": row.notes,
    }
