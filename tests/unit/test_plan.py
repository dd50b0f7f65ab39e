from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.names import Bdf
from vfio_intx.wiring.plan import Change, steps_of
from vfio_intx.wiring.steps import Binding

BDF = Bdf(0, 0, 0x10, 0)
NAMES = ("", "e1000", "vfio-pci")
BINDINGS = [Binding(driver, override) for driver, override in itertools.product(NAMES, NAMES)]
PAIRS = list(itertools.product(BINDINGS, BINDINGS))


def script(now: Binding, goal: Binding) -> list[str]:
    return [str(write) for step in steps_of(Change(BDF, now, goal)) for write in step.do]


def test_bind_sets_the_override_before_it_takes_the_driver_away() -> None:
    assert script(Binding("e1000", ""), Binding("vfio-pci", "vfio-pci")) == [
        '+ echo "vfio-pci" > /sys/bus/pci/devices/0000:00:10.0/driver_override',
        '+ echo "0000:00:10.0" > /sys/bus/pci/drivers/e1000/unbind',
        '+ echo "0000:00:10.0" > /sys/bus/pci/drivers_probe',
    ]


def test_restore_names_the_first_driver_and_then_clears_the_override() -> None:
    assert script(Binding("vfio-pci", "vfio-pci"), Binding("e1000", "")) == [
        '+ echo "e1000" > /sys/bus/pci/devices/0000:00:10.0/driver_override',
        '+ echo "0000:00:10.0" > /sys/bus/pci/drivers/vfio-pci/unbind',
        '+ echo "0000:00:10.0" > /sys/bus/pci/drivers_probe',
        '+ echo "" > /sys/bus/pci/devices/0000:00:10.0/driver_override',
    ]


@given(st.sampled_from(BINDINGS))
def test_a_change_to_where_it_is_has_no_steps(binding: Binding) -> None:
    assert steps_of(Change(BDF, binding, binding)) == ()


@pytest.mark.parametrize(("now", "goal"), PAIRS)
def test_steps_join_from_now_to_goal_without_a_gap(now: Binding, goal: Binding) -> None:
    at = now
    for step in steps_of(Change(BDF, now, goal)):
        assert step.before == at
        assert step.after != at
        at = step.after
    assert at == goal


@pytest.mark.parametrize(("now", "goal"), PAIRS)
def test_nothing_ever_writes_new_id(now: Binding, goal: Binding) -> None:
    writes = [w for step in steps_of(Change(BDF, now, goal)) for w in (*step.do, *step.undo)]
    assert not [write for write in writes if write.path.endswith(("new_id", "remove_id", "/remove"))]
