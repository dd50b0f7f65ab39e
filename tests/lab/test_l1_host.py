"""L1 is the passthrough host it claims to be: groups, drivers, shared lines, a place to write."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.lab.specs import NIC, SERIAL, TWIN
from vfio_intx.lab.run import PROJECT

pytestmark = pytest.mark.l1


def _device(bdf: object) -> Path:
    return Path("/sys/bus/pci/devices") / str(bdf)


def test_every_card_is_in_a_group_of_its_own() -> None:
    groups = [(_device(card.bdf) / "iommu_group").resolve().name for card in (NIC, SERIAL, TWIN)]
    assert len(set(groups)) == 3


def test_cards_have_their_first_drivers() -> None:
    assert (_device(NIC.bdf) / "driver").resolve().name == "e1000"
    assert (_device(SERIAL.bdf) / "driver").resolve().name == "serial"


def test_slots_four_apart_share_a_line_and_neighbours_do_not() -> None:
    nic, serial, twin = ((_device(card.bdf) / "irq").read_text().strip() for card in (NIC, SERIAL, TWIN))
    assert nic == twin != serial


def test_kvm_and_vfio_are_usable() -> None:
    for path in ("/dev/kvm", "/dev/vfio/vfio"):
        os.close(os.open(path, os.O_RDWR))


def test_tracefs_knows_the_events_of_the_chain() -> None:
    events = Path("/sys/kernel/tracing/events")
    for name in ("irq/irq_handler_entry", "kvm/kvm_set_irq", "kvm/kvm_ack_irq"):
        assert (events / name / "id").exists()


def test_writing_to_the_project_stays_in_l1(tmp_path: Path) -> None:
    # The other half is the machine's: test_lab_on_the_machine.py looks for this file and must not find it.
    (PROJECT / "written-in-l1").write_text("x")
    assert re.search(r"^overlay / overlay ", Path("/proc/mounts").read_text(), re.M)
    (tmp_path / "x").write_text("x")
    assert not any(Path("/var/lib/vfio-intx").iterdir())


@pytest.mark.l1(spec="nointxmask")
def test_module_parameters_reach_vfio_pci() -> None:
    assert Path("/sys/module/vfio_pci/parameters/nointxmask").read_text().strip() == "Y"
