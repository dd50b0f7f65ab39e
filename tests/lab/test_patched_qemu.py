"""The series of qemu-patches/, in short: live switches under load, and what a patched QEMU must refuse.

The long runs (10,000 switches, 100 deaths of the agent, each defect) are scenarios to be run by hand; these few minutes
are there so that a change cannot break the series unseen.
"""

from __future__ import annotations

import pytest

from tests.lab.losses import result_of
from vfio_intx.lab import build_qemu
from vfio_intx.lab.qemu_series import BASES
from vfio_intx.lab.scenarios.qemu import refusals, switch_under_load

pytestmark = [pytest.mark.lab, pytest.mark.timeout(0)]

SWITCHES = 150


def require_series(base: str) -> None:
    if build_qemu.find(base) is None:
        pytest.skip(f"QEMU {base} with the series is not in the cache: tools/build-qemu --base {base} (minutes)")


@pytest.mark.parametrize("base", BASES)
def test_live_switches_under_load_lose_nothing(base: str) -> None:
    require_series(base)
    result = result_of("qemu/switch-under-load", base, str(SWITCHES))
    assert switch_under_load.failures(result) == []
    assert result["switches"] > SWITCHES


def test_unfit_eventfds_and_schemes_are_refused_and_the_line_stays() -> None:
    require_series("10.0")
    assert refusals.failures(result_of("qemu/refusals", "10.0")) == []
