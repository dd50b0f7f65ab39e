"""Eventfds as a line needs them: never blocking, and told apart by what procfs shows."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.abi import eventfd
from vfio_intx.abi.call import close_all
from vfio_intx.errors import KernelError

PROC = Path("/proc")


@pytest.fixture
def fd() -> Iterator[int]:
    made = eventfd.create()
    yield made
    close_all(made)


def test_signals_add_up_until_they_are_drained(fd: int) -> None:
    eventfd.signal(fd)
    eventfd.signal(fd, 2)
    assert eventfd.drain(fd) == 3
    assert eventfd.drain(fd) == 0


def test_a_full_counter_is_an_error_and_never_a_wait(fd: int) -> None:
    eventfd.signal(fd, 2**64 - 2)
    with pytest.raises(KernelError) as caught:
        eventfd.signal(fd)
    assert caught.value.errno_name == "EAGAIN"
    assert eventfd.drain(fd) == 2**64 - 2


def test_a_signal_wakes_a_poll(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(0) == []
    eventfd.signal(fd)
    assert poller.poll(0) == [(fd, select.POLLIN)]


def test_it_does_not_survive_exec(fd: int) -> None:
    assert not os.get_inheritable(fd)
    assert eventfd.is_nonblocking(fd)


def test_a_dup_is_known_by_its_identity(fd: int) -> None:
    same, other = os.dup(fd), eventfd.create(5)
    try:
        facts = [eventfd.inspect(each, proc=PROC) for each in (fd, same, other)]
        assert facts[0] is not None
        assert facts[1] is not None
        assert facts[2] is not None
        assert facts[0].identity == facts[1].identity != facts[2].identity
        assert facts[2].count == 5
    finally:
        close_all(same, other)


def test_what_may_not_become_a_line_is_refused_with_the_reason() -> None:
    semaphore, blocking = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK), os.eventfd(0, 0)
    ends = os.pipe()
    good = eventfd.create()
    try:
        info = eventfd.inspect(semaphore, proc=PROC)
        if info is not None and info.semaphore is not None:
            assert "semaphore" in (eventfd.objection(semaphore, proc=PROC) or "")
        assert "blocks" in (eventfd.objection(blocking, proc=PROC) or "")
        assert "not an eventfd" in (eventfd.objection(ends[0], proc=PROC) or "")
        assert eventfd.objection(good, proc=PROC) is None
    finally:
        close_all(semaphore, blocking, *ends, good)


def test_a_closed_descriptor_is_an_error_not_an_answer() -> None:
    closed = eventfd.create()
    close_all(closed)
    for ask in (lambda: eventfd.inspect(closed, proc=PROC), lambda: eventfd.drain(closed)):
        with pytest.raises(KernelError):
            ask()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pos:\t0\neventfd-count:               1f\neventfd-id: 29\neventfd-semaphore: 0\n", (31, 29, False)),
        ("eventfd-count: 0\neventfd-id: 3\n", (0, 3, None)),
        ("eventfd-count: 0\n", (0, None, None)),
    ],
)
def test_fdinfo_of_several_kernels(text: str, expected: tuple[int, int | None, bool | None]) -> None:
    info = eventfd.parse_fdinfo(text)
    assert info is not None
    assert (info.count, info.identity, info.semaphore) == expected


@given(st.text(max_size=300))
def test_no_text_breaks_the_parser(text: str) -> None:
    info = eventfd.parse_fdinfo(text)
    assert info is None or info.count >= 0


def test_other_descriptors_are_not_eventfds() -> None:
    assert eventfd.parse_fdinfo("pos:\t0\nflags:\t02\nmnt_id:\t9\nPid:\t1\n") is None
