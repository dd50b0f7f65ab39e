"""The card files: whose they are, and that their writes do to a card what the files say."""

from __future__ import annotations

import itertools

import pytest

from tests.fakes.vfio_device import ICR, IMS, FakeCard
from vfio_intx.microvm.cards import CARDS, Card, CardAsserter, card_for


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        ((0x8086, 0x100E), "e1000"),
        ((0x8086, 0x10D3), "e1000e"),
        ((0x8086, 0x10C9), "igb"),
        ((0x8086, 0x1533), "igb"),
        ((0x1234, 0x11E8), "edu"),
    ],
)
def test_well_known_cards_have_their_file(ids: tuple[int, int], name: str) -> None:
    found = card_for(*ids)
    assert found is not None
    assert found.name == name


def test_a_card_that_nobody_wrote_down_has_none() -> None:
    assert card_for(0x1B36, 0x0002) is None
    assert card_for(0x8086, 0xFFFF) is None


def test_no_function_has_two_files() -> None:
    for one, other in itertools.combinations(CARDS, 2):
        assert not one.ids & other.ids, f"{one.name} and {other.name}"


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_registers_are_whole_words_inside_a_small_bar(card: Card) -> None:
    writes = (*card.enable, card.assert_, *card.disable)
    offsets = [*(write.offset for write in writes), *card.clear, card.status, card.acknowledge]
    assert all(offset % 4 == 0 and 0 <= offset < 0x4000 for offset in offsets)
    assert all(0 <= write.value < 1 << 32 for write in writes)


def test_an_e1000_is_silent_until_it_is_told_to_fire_and_again_afterwards() -> None:
    registers = FakeCard()
    registers.write(IMS, 0xFF)
    registers.cause = 0x80
    found = card_for(0x8086, 0x100E)
    assert found is not None
    asserter = CardAsserter(found, registers)
    asserter.prepare()
    assert not line(registers), "what was pending before is gone"
    registers.cause |= 0x80
    assert not line(registers), "no other cause reaches the pin"
    asserter.fire()
    assert line(registers)
    registers.read(ICR)
    assert not line(registers)
    asserter.fire()
    asserter.silence()
    assert not line(registers)
    registers.cause = 0xFFFF_FFFF
    assert not line(registers)


def line(registers: FakeCard) -> bool:
    return registers.asserts
