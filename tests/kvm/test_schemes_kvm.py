"""The five schemes on a real /dev/kvm: who hears what, and what is lost."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kvm.starving import starved_vcpus
from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.bench import contests, race
from vfio_intx.microvm.contest import EDGE_ROUNDS, Contestant
from vfio_intx.microvm.figures import SchemeFigures
from vfio_intx.microvm.guest import Pin

pytestmark = pytest.mark.kvm

ROUNDS = 300


@contextmanager
def _contestant(kvm_fd: int, scheme: Scheme, pin: Pin) -> Iterator[Contestant]:
    made = Contestant(kvm_fd, scheme, pin)
    try:
        yield made
    finally:
        made.close()


def _raced(kvm_fd: int, scheme: Scheme, pin: Pin) -> SchemeFigures:
    with _contestant(kvm_fd, scheme, pin) as contestant:
        contestant.race(ROUNDS, array("Q", bytes(8 * ROUNDS)))
        return contestant.finish()


@pytest.mark.parametrize(("scheme", "pin"), [row for row in contests(list(Scheme)) if row[0] is not Scheme.EDGE])
def test_nothing_is_lost(kvm_fd: int, scheme: Scheme, pin: Pin) -> None:
    figures = _raced(kvm_fd, scheme, pin)
    assert (figures.triggers, figures.acknowledged, figures.lost) == (ROUNDS, ROUNDS, 0)
    # Each assertion has a number, so a handler run that found none new is a repeated one, and there are no others.
    assert figures.handler_runs == ROUNDS + figures.repeated
    if scheme is Scheme.IRQFD:
        assert figures.wakeups == 0
    else:
        assert figures.wakeups >= ROUNDS


@pytest.mark.parametrize("pin", list(Pin))
def test_a_repeated_run_of_irqfd_is_always_explained(kvm_fd: int, pin: Pin) -> None:
    figures = _raced(kvm_fd, Scheme.IRQFD, pin)
    # Not a run too many that vfio did not ask for, and vfio asked for it only where KVM was seen to be early.
    assert figures.repeated == figures.refired
    assert figures.early or not figures.refired
    if pin is Pin.PIC:
        assert not figures.early
    assert bool(figures.notes) == bool(figures.refired)
    assert not figures.refired or "seen with the guest held in its handler" in figures.notes[0]


@pytest.mark.parametrize(("scheme", "pin"), [row for row in contests(list(Scheme)) if row[0] is not Scheme.EDGE])
def test_no_run_of_the_handler_is_left_over_for_the_next_round(kvm_fd: int, scheme: Scheme, pin: Pin) -> None:
    """A guest that gets hardly any CPU time between two rounds has yet to end, or even to begin, its last interrupt."""
    with _contestant(kvm_fd, scheme, pin) as contestant:
        for _ in range(5):
            with starved_vcpus():
                contestant.race(2, array("Q", bytes(16)))
            contestant.race(20, array("Q", bytes(160)))
        figures = contestant.finish()
    assert (figures.triggers, figures.acknowledged, figures.lost) == (110, 110, 0)
    assert figures.handler_runs == 110 + figures.repeated
    if scheme is Scheme.IRQFD:
        assert figures.repeated == figures.refired


@pytest.mark.parametrize("scheme", [Scheme.ACK_EVENTFD, Scheme.SPLIT, Scheme.TRAP, Scheme.EDGE])
def test_whether_kvm_is_early_is_asked_where_the_kernel_alone_hears_the_eoi(kvm_fd: int, scheme: Scheme) -> None:
    with _contestant(kvm_fd, scheme, Pin.IOAPIC) as contestant:
        assert contestant.figures.early is None


@pytest.mark.parametrize("pin", list(Pin))
def test_edge_is_seen_to_fail(kvm_fd: int, pin: Pin) -> None:
    figures = _raced(kvm_fd, Scheme.EDGE, pin)
    assert (figures.triggers, figures.acknowledged, figures.lost) == (EDGE_ROUNDS, 0, EDGE_ROUNDS)
    assert figures.round_trip is None
    if pin is Pin.PIC:
        # The level was gone before the guest looked.
        assert figures.handler_runs == 0


def test_a_second_round_of_edge_is_not_run(kvm_fd: int) -> None:
    with _contestant(kvm_fd, Scheme.EDGE, Pin.PIC) as contestant:
        for _ in range(2):
            contestant.race(ROUNDS, array("Q", bytes(8 * ROUNDS)))
        assert contestant.finish().triggers == EDGE_ROUNDS


def test_trap_is_woken_for_the_trigger_and_for_every_access(kvm_fd: int) -> None:
    # One wake-up for the trigger, an exit for reading the cause and one for writing it back.
    assert _raced(kvm_fd, Scheme.TRAP, Pin.IOAPIC).wakeups >= 3 * ROUNDS


def test_a_race_gives_every_scheme_its_rounds_and_tells_of_them(kvm_fd: int) -> None:
    seen: list[tuple[int, int]] = []
    figures = race(kvm_fd, list(Scheme), 1200, ceiling_s=0.1, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]
    assert not figures.partial
    assert [(row.scheme, row.pin) for row in figures.schemes] == contests(list(Scheme))
    assert all(row.triggers == 1200 for row in figures.schemes if row.scheme is not Scheme.EDGE)
    assert figures.ceiling is not None
    assert figures.ceiling.interrupts > 0
    assert figures.ceiling.seconds > 0.09


def test_an_interrupted_race_keeps_the_rounds_that_ended(kvm_fd: int) -> None:
    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    figures = race(kvm_fd, [Scheme.IRQFD], 3000, ceiling_s=0.03, progress=interrupt)
    assert figures.partial
    assert [row.triggers for row in figures.schemes] == [1000, 1000]
    assert all(row.round_trip is not None for row in figures.schemes)
