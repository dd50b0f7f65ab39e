"""A real card's line traced in the lab under every scheme and on every kernel: each stage by the scheme's own means."""

from __future__ import annotations

import pytest

from tests.lab.losses import result_of
from vfio_intx.lab.scenarios import trace

pytestmark = [pytest.mark.lab, pytest.mark.timeout(2000)]

COMMON = {"host-mask", "inject", "route", "deliver", "eoi", "resample"}


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "7.2"])
def test_the_stages_name_the_mechanics_of_each_scheme(kernel: str) -> None:
    result = result_of("trace", kernel=kernel)
    assert trace.failures(result) == []
    seen = {scheme: {stage["stage"] for stage in row["stages"]} for scheme, row in result["schemes"].items()}
    assert seen["irqfd"] == COMMON | {"trigger"}
    assert seen["trap"] == COMMON | {"trigger", "handle"}
    assert seen["split"] == COMMON
    wakeups = {scheme: row["wakeups_per_interrupt"] for scheme, row in result["schemes"].items()}
    assert wakeups["irqfd"] == 0
    assert wakeups["trap"] >= 1
    assert wakeups["split"] >= 1
    for row in result["schemes"].values():
        assert row["host_interrupts"] > 0
        assert row["handled"] == row["interrupts"]
