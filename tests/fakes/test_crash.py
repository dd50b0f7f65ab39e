"""SIGKILL at every boundary of bind, unbind and restore: the next verb finishes, or brings the first driver back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.crash import dies_at, no_power_cut
from tests.fakes.kernel import FakeKernel, nic_host
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import Machine
from vfio_intx.wiring.drivers import bind, restore, unbind

BDF = Bdf.parse("0000:00:10.0")
NIC = str(BDF)
FIRST, VFIO = ("e1000", ""), ("vfio-pci", "vfio-pci")
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


def killed(path: Path, before: tuple[Verb, ...], verb: Verb, boundary: int) -> FakeKernel | None:
    """A host on which *verb* was killed at that boundary; None if it has no such boundary."""
    kernel = nic_host(path / "host")
    for earlier in before:
        earlier(kernel, path / "state")
    return kernel if dies_at(boundary, kernel, lambda machine: verb(machine, path / "state")) else None


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("then", ["restore", "bind", "unbind"])
def test_after_sigkill_at_any_boundary_the_next_verb_ends_well(tmp_path: Path, name: str, then: str) -> None:
    before, verb = VERBS[name]
    for boundary in itertools.count():
        path = tmp_path / str(boundary)
        kernel = killed(path, before, verb, boundary)
        if kernel is None:
            break
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
    print(f"kills: {boundary}")
    assert boundary >= 10, "too few boundaries: is the fuse still connected?"


@pytest.mark.parametrize("first", range(4, 20, 5))
def test_a_recovery_that_is_killed_at_any_boundary_still_ends_well(tmp_path: Path, first: int) -> None:
    for second in itertools.count():
        path = tmp_path / str(second)
        kernel = killed(path, (), do_bind, first)
        assert kernel is not None, "bind has fewer boundaries than this test kills it at"
        died = dies_at(second, kernel, partial(do_restore, state=path / "state"))
        do_restore(kernel, path / "state")
        log = list(kernel.log)
        do_restore(kernel, path / "state")
        assert (kernel.state(NIC), kernel.log) == (FIRST, log), f"boundary {second}"
        if not died:
            break
    print(f"kills: {2 * second + 1}")
