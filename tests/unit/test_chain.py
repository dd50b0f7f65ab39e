"""The shared model: eleven stages in order, and when evidence is proof."""

from __future__ import annotations

import pytest

from vfio_intx.chain.evidence import Evidence, Kind, weigh
from vfio_intx.chain.fact import Fact
from vfio_intx.chain.scheme import Scheme
from vfio_intx.chain.stage import Stage
from vfio_intx.deadline import Deadline
from vfio_intx.errors import UsageError


def test_the_chain_has_eleven_stages_from_device_to_unmask() -> None:
    assert [stage.number for stage in Stage] == list(range(1, 12))
    assert (Stage.DEVICE.number, Stage.UNMASK.number) == (1, 11)
    assert all(stage.demand for stage in Stage)


def _seen(kind: Kind, scheme: Scheme | None) -> Evidence:
    return Evidence(kind, "seen", scheme)


def test_one_kind_of_evidence_is_no_proof_however_often() -> None:
    verdict = weigh([_seen(Kind.CONFIGURATION, Scheme.IRQFD)] * 3)
    assert not verdict.proven
    assert verdict.scheme is None
    assert verdict.why_not is not None
    assert "second kind" in verdict.why_not


def test_two_kinds_that_agree_are_proof() -> None:
    verdict = weigh([_seen(Kind.CONFIGURATION, Scheme.TRAP), _seen(Kind.COUNTERS, Scheme.TRAP)])
    assert verdict.proven
    assert verdict.scheme is Scheme.TRAP


def test_a_contradiction_proves_nothing_even_two_against_one() -> None:
    verdict = weigh(
        [_seen(Kind.CONFIGURATION, Scheme.IRQFD), _seen(Kind.TRACE, Scheme.IRQFD), _seen(Kind.COUNTERS, Scheme.TRAP)]
    )
    assert not verdict.proven
    assert verdict.why_not is not None
    assert "irqfd and trap" in verdict.why_not


@pytest.mark.parametrize("items", [[], [_seen(Kind.COUNTERS, None)]])
def test_silence_is_not_guessed_at(items: list[Evidence]) -> None:
    assert weigh(items).scheme is None


def test_an_unknown_fact_stays_unknown_and_keeps_its_reason() -> None:
    fact: Fact[str] = Fact.unknown("/proc/x", "Permission denied")
    assert fact.map(len) == Fact(None, "/proc/x", "Permission denied")
    assert Fact.known("abc", "/proc/x").map(len).value == 3


def test_a_scheme_that_there_is_not_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        Scheme.parse("fast")
    assert "irqfd" in (caught.value.hint or "")


def test_a_verb_offers_only_the_schemes_that_it_takes() -> None:
    with pytest.raises(UsageError, match="fast") as caught:
        Scheme.parse("fast", offered=(Scheme.IRQFD, Scheme.TRAP))
    assert caught.value.hint == "one of irqfd, trap"


def test_a_poll_asks_at_least_once_and_gives_up_at_its_deadline() -> None:
    asked: list[int] = []

    def never() -> bool:
        asked.append(1)
        return False

    assert not Deadline.after("a test", 0.01).poll(never)
    assert asked
    assert Deadline.after("a test", 60).poll(lambda: len(asked) > 0)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_deadline_is_a_finite_time_ahead(seconds: float) -> None:
    with pytest.raises(UsageError):
        Deadline.after("a test", seconds)
