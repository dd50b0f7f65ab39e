"""A card on the kernel's list of broken ones, with a real kernel that has the list: see the scenario."""

from __future__ import annotations

import pytest

from tests.lab.losses import unless_lost
from vfio_intx.errors import LabLost
from vfio_intx.lab import build_qemu
from vfio_intx.lab.play import Played, Progress, play
from vfio_intx.lab.qemu_series import LAB
from vfio_intx.lab.scenarios import quirk_card


@pytest.mark.lab
@pytest.mark.timeout(0)
def test_a_listed_card_is_known_and_its_conflict_predicted() -> None:
    if build_qemu.find(LAB.name) is None:
        pytest.skip(f"QEMU {LAB.name} is not in the cache: tools/build-qemu --base {LAB.name} (minutes)")

    def run() -> Played:
        played = play("quirk-card", None, (), Progress(print))
        if isinstance(played.error, LabLost):
            raise played.error
        return played

    played = unless_lost(run)
    assert played.error is None, played.error
    assert quirk_card.failures(played.result) == []
    for line in quirk_card.show(played.result):
        print(line)
