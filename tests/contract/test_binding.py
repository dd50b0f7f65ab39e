"""bind, unbind, restore: the same promises kept on the fake driver core and on real sysfs (in the lab's L1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.kernel import nic_host
from tests.lab.specs import NIC, SERIAL
from vfio_intx.host.iommu import is_vfio_driver
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import LocalMachine, Machine, read_binding
from vfio_intx.wiring.drivers import bind, restore, unbind
from vfio_intx.wiring.steps import Binding

VFIO = Binding("vfio-pci", "vfio-pci")
Host = tuple[Machine, Bdf]


#: The lab's cards by name; each is on its own driver and alone in its group.
REAL = [pytest.param(card, marks=pytest.mark.l1, id=f"real-{card.name}") for card in (NIC, SERIAL)]


@pytest.fixture(params=["fake", *REAL])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    """A machine and a function of it that may be taken; it is on its first binding again when the test ends."""
    if request.param == "fake":
        yield nic_host(tmp_path / "host"), Bdf.parse("0000:00:10.0")
        return
    machine, bdf = LocalMachine(), request.param.bdf
    before = read_binding(machine.root, bdf)
    assert before.driver, f"{bdf} must start on its host driver"
    assert not is_vfio_driver(before.driver), f"{bdf} must start on its host driver, not on {before}"
    yield machine, bdf
    restore(machine, tmp_path / "state", bdf)
    assert read_binding(machine.root, bdf) == before


def now(host: Host) -> Binding:
    return read_binding(host[0].root, host[1])


def test_there_and_back_again(host: Host, tmp_path: Path) -> None:
    machine, bdf = host
    first = now(host)
    outcome = bind(machine, tmp_path / "state", [bdf])[0]
    assert (outcome.was, outcome.now) == (first, VFIO)
    assert now(host) == VFIO
    assert restore(machine, tmp_path / "state", bdf).now == first
    assert now(host) == first
    assert not list((tmp_path / "state").glob("*.record*"))


def test_each_verb_twice_is_as_good_as_once(host: Host, tmp_path: Path) -> None:
    machine, bdf = host
    first = now(host)
    assert bind(machine, tmp_path / "state", [bdf])[0].writes > 0
    assert bind(machine, tmp_path / "state", [bdf])[0].writes == 0
    assert unbind(machine, tmp_path / "state", bdf).writes > 0
    assert unbind(machine, tmp_path / "state", bdf).writes == 0
    assert restore(machine, tmp_path / "state", bdf).writes > 0
    assert restore(machine, tmp_path / "state", bdf).writes == 0
    assert now(host) == first


def test_unbind_leaves_no_driver_and_no_override_and_restore_still_knows(host: Host, tmp_path: Path) -> None:
    machine, bdf = host
    first = now(host)
    bind(machine, tmp_path / "state", [bdf])
    unbind(machine, tmp_path / "state", bdf)
    assert now(host) == Binding("", first.override)
    restore(machine, tmp_path / "state", bdf)
    assert now(host) == first


def test_bind_after_unbind_still_remembers_the_first_driver(host: Host, tmp_path: Path) -> None:
    machine, bdf = host
    first = now(host)
    bind(machine, tmp_path / "state", [bdf])
    unbind(machine, tmp_path / "state", bdf)
    bind(machine, tmp_path / "state", [bdf])
    assert now(host) == VFIO
    restore(machine, tmp_path / "state", bdf)
    assert now(host) == first
