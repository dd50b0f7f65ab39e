"""The VMM's thread: it calls who is responsible, counts its wake-ups, and tells what ended it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from vfio_intx.abi import eventfd
from vfio_intx.abi.call import close_all
from vfio_intx.deadline import Deadline
from vfio_intx.errors import InternalError, KernelError
from vfio_intx.microvm.eventloop import EventLoop


@pytest.fixture
def fd() -> Iterator[int]:
    made = eventfd.create()
    yield made
    close_all(made)


def test_every_wake_up_is_counted_and_handed_on(fd: int) -> None:
    served = threading.Semaphore(0)
    loop = EventLoop({fd: served.release})
    try:
        for number in range(1, 4):
            eventfd.signal(fd, 5)
            assert served.acquire(timeout=60)
            assert loop.wakeups == number, "counted by the time it is served"
        loop.check()
    finally:
        loop.stop()
        loop.stop()
    assert eventfd.drain(fd) == 0


def _dies_with(fd: int, error: Exception) -> EventLoop:
    def fail() -> None:
        raise error

    loop = EventLoop({fd: fail})
    eventfd.signal(fd)
    return loop


@pytest.mark.parametrize(
    ("error", "told"), [(KernelError("KVM_IRQ_LINE", "VM", 5), KernelError), (ValueError("odd"), InternalError)]
)
def test_what_ends_it_is_told_to_whoever_asks(fd: int, error: Exception, told: type[Exception]) -> None:
    loop = _dies_with(fd, error)

    def dead() -> bool:
        try:
            loop.check()
        except told:
            return True
        return False

    assert Deadline.after("thread to die", 60).poll(dead)
    loop.stop()
