"""Devices opened and raced in L1: a card that no file knows, a device in use, one that is not ours to open."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.contract.vfio_rigs import given_away
from tests.lab.specs import NIC, SERIAL, TWIN
from vfio_intx.errors import BusyError, RefusedError
from vfio_intx.host.root import HostRoot
from vfio_intx.wiring.device_files import open_device


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "vfio_intx", "bench", *words]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280)


@pytest.mark.l1
def test_a_card_that_no_file_knows_is_raced_by_the_software_trigger() -> None:
    with given_away(SERIAL.bdf):
        ran = bench("--device", str(SERIAL.bdf), "--count", "300", "--json")
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["schema"] == "vfio-intx/bench/1"
    assert said["device"]["assertion"] == "software"
    assert said["device"]["card"] is None
    assert [row["scheme"] for row in said["schemes"]] == ["irqfd", "ack-eventfd"]
    for row in said["schemes"]:
        assert (row["triggers"], row["acknowledged"], row["lost"]) == (300, 300, 0)
        assert said["device"]["host_interrupts"][row["scheme"]] == 0, "the device itself asserted nothing"


@pytest.mark.l1
def test_a_device_in_use_is_told_with_its_holder() -> None:
    with given_away(TWIN.bdf), open_device(HostRoot(), TWIN.bdf):
        with pytest.raises(BusyError, match=f"in use by process {os.getpid()} ") as caught:
            open_device(HostRoot(), TWIN.bdf)
        assert "detach" in (caught.value.hint or "")
        ran = bench("--device", str(TWIN.bdf), "--count", "10")
        assert ran.returncode == 1
        assert "in use by process" in ran.stderr
        assert "Traceback" not in ran.stderr


@pytest.mark.l1
def test_a_device_can_be_opened_again_after_it_was_closed() -> None:
    with given_away(TWIN.bdf):
        for _ in range(3):
            with open_device(HostRoot(), TWIN.bdf) as opened:
                assert opened.device.irq_info().count == 1
                assert opened.function.intx_irq.value


@pytest.mark.l1
def test_a_device_with_its_own_driver_is_refused() -> None:
    with pytest.raises(RefusedError, match="bound to e1000, not to vfio-pci"):
        open_device(HostRoot(), NIC.bdf)


@pytest.mark.l1(spec="nointxmask")
def test_a_card_that_cannot_mask_itself_is_raced_too() -> None:
    """vfio masks such a card at the host's interrupt controller, which DisINTx does not show."""
    with given_away(NIC.bdf):
        ran = bench("--device", str(NIC.bdf), "--count", "300", "--json")
    assert ran.returncode == 0, ran.stderr
    for row in json.loads(ran.stdout)["schemes"]:
        assert (row["triggers"], row["acknowledged"], row["lost"]) == (300, 300, 0)
