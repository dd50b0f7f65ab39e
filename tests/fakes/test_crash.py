"""SIGKILL at every boundary of bind, unbind and restore: the next verb finishes, or brings the first driver back."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fakes.crash import dies_at, dying_at, no_power_cut
from tests.fakes.kernel import FakeKernel, nic_host
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import Machine
from vfio_intx.wiring.drivers import bind, restore, unbind

BDF = Bdf.parse("0000:00:10.0")
NIC = str(BDF)
FIRST, VFIO = ("e1000", ""), ("vfio-pci", "vfio-pci")
#: How many hosts are prepared and killed ahead of the one that is looked at.
AHEAD = 2
Verb = Callable[[Machine, Path], object]


@pytest.fixture(autouse=True, scope="module")
def _no_power_cut() -> Iterator[None]:
    with no_power_cut():
        yield


def do_bind(kernel: Machine, state: Path) -> object:
    return bind(kernel, state, [BDF])


def do_unbind(kernel: Machine, state: Path) -> object:
    return unbind(kernel, state, BDF)


def do_restore(kernel: Machine, state: Path) -> object:
    return restore(kernel, state, BDF)


VERBS: dict[str, tuple[tuple[Verb, ...], Verb]] = {
    "bind": ((), do_bind),
    "unbind": ((do_bind,), do_unbind),
    "restore": ((do_bind,), do_restore),
    "restore of an unbound one": ((do_bind, do_unbind), do_restore),
    "bind of an unbound one": ((do_bind, do_unbind), do_bind),
}


class Killing(NamedTuple):
    """A host on which a verb is being killed; *died* waits for that, False if the verb has no such boundary."""

    path: Path
    kernel: FakeKernel
    died: Callable[[], bool]


def killing(path: Path, before: tuple[Verb, ...], verb: Verb, boundary: int) -> Killing:
    kernel = nic_host(path / "host")
    for earlier in before:
        earlier(kernel, path / "state")
    return Killing(path, kernel, dying_at(boundary, kernel, lambda machine: verb(machine, path / "state")))


def each_boundary(folder: Path, before: tuple[Verb, ...], verb: Verb) -> Iterator[tuple[int, Path, FakeKernel]]:
    """For each boundary of *verb* a host on which it was killed there, while others are killed in the background."""
    hosts = (killing(folder / str(boundary), before, verb, boundary) for boundary in itertools.count())
    ahead = deque(itertools.islice(hosts, AHEAD))
    try:
        for boundary in itertools.count():
            ahead.append(next(hosts))
            path, kernel, died = ahead.popleft()
            if not died():
                return
            yield boundary, path, kernel
    finally:
        for host in ahead:
            host.died()


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("then", ["restore", "bind", "unbind"])
def test_after_sigkill_at_any_boundary_the_next_verb_ends_well(tmp_path: Path, name: str, then: str) -> None:
    before, verb = VERBS[name]
    kills = 0
    for boundary, path, kernel in each_boundary(tmp_path, before, verb):
        kills += 1
        if then == "restore" and kernel.state(NIC) != FIRST:
            do_restore(kernel, path / "state")
        if then == "bind":
            do_bind(kernel, path / "state")
            assert kernel.state(NIC) == VFIO, f"boundary {boundary}"
        if then == "unbind" and kernel.state(NIC)[0] != FIRST[0]:
            do_unbind(kernel, path / "state")
            # Not even the override that restore sets for a moment is left.
            assert kernel.state(NIC) == ("", ""), f"boundary {boundary}"
        assert do_restore(kernel, path / "state") is not None
        assert kernel.state(NIC) == FIRST, f"boundary {boundary}"
        assert list((path / "state").glob("0000*")) == [], f"boundary {boundary}"
    print(f"kills: {kills}")
    assert kills >= 10, "too few boundaries: is the fuse still connected?"


@pytest.mark.parametrize("first", range(4, 20, 5))
def test_a_recovery_that_is_killed_at_any_boundary_still_ends_well(tmp_path: Path, first: int) -> None:
    for second in itertools.count():
        path = tmp_path / str(second)
        kernel, died_first = killing(path, (), do_bind, first)[1:]
        assert died_first(), "bind has fewer boundaries than this test kills it at"
        died = dies_at(second, kernel, partial(do_restore, state=path / "state"))
        do_restore(kernel, path / "state")
        log = list(kernel.log)
        do_restore(kernel, path / "state")
        assert (kernel.state(NIC), kernel.log) == (FIRST, log), f"boundary {second}"
        if not died:
            break
    print(f"kills: {2 * second + 1}")
