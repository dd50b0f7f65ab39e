"""The model card and its vfio line: what it does is what drivers/vfio/pci/vfio_pci_intrs.c does."""

from __future__ import annotations

import os
import resource
import select
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vfio_intx.abi import eventfd
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.errors import KernelError
from vfio_intx.microvm.contest import Contestant
from vfio_intx.microvm.device import ACKNOWLEDGE, CAUSE, LevelDevice, MemoryRegisters
from vfio_intx.microvm.guest import Pin


@pytest.fixture
def card() -> Iterator[LevelDevice]:
    made = LevelDevice()
    yield made
    made.close()


def _quiet(card: LevelDevice) -> None:
    registers = MemoryRegisters(card.registers)
    registers.write(ACKNOWLEDGE, registers.read(CAUSE))


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@contextmanager
def no_more_descriptors_than(number: int) -> Iterator[list[str]]:
    """Only so many can be opened in this block; the list has those that are open after it."""
    probes = [os.dup(0) for _ in range(number + 1)]
    close_all(*probes)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    left: list[str] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (probes[number], hard))
    try:
        yield left
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    left += descriptors()


def test_a_card_that_cannot_be_made_leaves_no_descriptor() -> None:
    before = descriptors()
    with no_more_descriptors_than(1) as left, pytest.raises(KernelError, match="EMFILE"):
        LevelDevice()
    assert left == before


def test_a_scheme_whose_machine_is_refused_leaves_no_descriptor() -> None:
    before = descriptors()
    with Path(os.devnull).open() as no_kvm, pytest.raises(KernelError, match="ENOTTY"):
        Contestant(no_kvm.fileno(), Scheme.IRQFD, Pin.IOAPIC)
    assert descriptors() == before


def test_an_assertion_masks_the_line_and_signals_once(card: LevelDevice) -> None:
    card.raise_line()
    card.raise_line()
    assert card.masked
    assert card.is_asserting
    assert eventfd.drain(card.trigger) == 1


def test_an_unmask_while_quiet_opens_the_line(card: LevelDevice) -> None:
    card.raise_line()
    _quiet(card)
    eventfd.signal(card.unmask)
    assert card.take_unmask()
    assert not card.masked
    assert eventfd.drain(card.trigger) == 1


def test_an_unmask_while_asserting_fires_again_and_stays_masked(card: LevelDevice) -> None:
    card.raise_line()
    eventfd.drain(card.trigger)
    eventfd.signal(card.unmask)
    assert card.take_unmask()
    assert card.masked
    assert eventfd.drain(card.trigger) == 1


def test_without_an_unmask_nothing_more_is_heard(card: LevelDevice) -> None:
    card.raise_line()
    eventfd.drain(card.trigger)
    _quiet(card)
    card.raise_line()
    assert not card.take_unmask()
    assert eventfd.drain(card.trigger) == 0


def test_an_unmask_of_an_open_line_does_no_harm(card: LevelDevice) -> None:
    eventfd.signal(card.unmask)
    assert card.take_unmask()
    assert not card.masked
    assert eventfd.drain(card.trigger) == 0


@contextmanager
def _guest(card: LevelDevice, serve: Callable[[int], None]) -> Iterator[None]:
    """A thread that is given every trigger, with its number, until the end."""
    stop = eventfd.create()

    def loop() -> None:
        poller, number = select.poll(), 0
        poller.register(card.trigger, select.POLLIN)
        poller.register(stop, select.POLLIN)
        while all(fd != stop for fd, _ in poller.poll()):
            eventfd.drain(card.trigger)
            serve(number)
            number += 1

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        eventfd.signal(stop)
        thread.join()
        close_all(stop)


def test_a_race_counts_every_round_trip(card: LevelDevice) -> None:
    def serve(number: int) -> None:
        _quiet(card)
        eventfd.signal(card.unmask)

    durations = array("Q", bytes(8 * 50))
    with _guest(card, serve):
        tally = card.race(50, durations, 5.0, 1)
    assert (tally.asserted, tally.acknowledged, tally.lost, tally.refired) == (50, 50, 0, 0)
    assert all(durations)


def test_an_early_unmask_is_counted_and_answered_by_firing_again(card: LevelDevice) -> None:
    def serve(number: int) -> None:
        if number % 2:
            _quiet(card)
        eventfd.signal(card.unmask)

    with _guest(card, serve):
        tally = card.race(10, array("Q", bytes(80)), 5.0, 1)
    assert (tally.acknowledged, tally.lost, tally.refired) == (10, 0, 10)


def test_what_comes_back_in_the_time_of_grace_is_late_and_not_lost(card: LevelDevice) -> None:
    def serve(number: int) -> None:
        _quiet(card)
        eventfd.signal(card.unmask)

    durations = array("Q", bytes(8 * 3))
    with _guest(card, serve):
        tally = card.race(3, durations, 0.0, 1, grace_s=30.0)
    assert (tally.asserted, tally.acknowledged, tally.lost, tally.late) == (3, 3, 0, 3)
    assert all(durations)


def test_what_never_comes_back_is_lost_and_ends_the_race_when_it_is_too_much(card: LevelDevice) -> None:
    durations = array("Q", [9] * 10)
    tally = card.race(10, durations, 0.001, 3)
    assert (tally.asserted, tally.acknowledged, tally.lost) == (3, 0, 3)
    assert list(durations[:3]) == [0, 0, 0]
    assert not card.masked
    assert not card.is_asserting


def test_a_dead_machine_ends_the_race_at_once(card: LevelDevice) -> None:
    gone = eventfd.create(1)
    try:
        card.watch(gone)
        tally = card.race(10, array("Q", bytes(80)), 60.0, 1)
    finally:
        close_all(gone)
    assert tally.asserted == 0


def test_the_number_of_an_assertion_may_wrap(card: LevelDevice) -> None:
    card.registers[CAUSE // 4] = card.registers[ACKNOWLEDGE // 4] = 0xFFFF_FFFF

    def serve(number: int) -> None:
        _quiet(card)
        eventfd.signal(card.unmask)

    with _guest(card, serve):
        assert card.race(3, array("Q", bytes(24)), 5.0, 1).acknowledged == 3
    assert card.registers[CAUSE // 4] == 2
