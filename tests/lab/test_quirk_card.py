"""A card on the kernel's list of broken ones, with a real kernel that has the list: see the scenario."""

from __future__ import annotations

import pytest

from tests.lab.losses import result_of
from vfio_intx.lab import build_qemu
from vfio_intx.lab.qemu_series import LAB
from vfio_intx.lab.scenarios import quirk_card


@pytest.mark.lab
@pytest.mark.timeout(0)
def test_a_listed_card_is_known_and_its_conflict_predicted() -> None:
    if build_qemu.find(LAB.name) is None:
        pytest.skip(f"QEMU {LAB.name} is not in the cache: tools/build-qemu --base {LAB.name} (minutes)")

    result = result_of("quirk-card")
    assert quirk_card.failures(result) == []
    for line in quirk_card.show(result):
        print(line)
