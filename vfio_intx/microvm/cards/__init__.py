"""The cards that can be told to interrupt: one small file a family. A new family is a new file and a line here."""

from __future__ import annotations

from vfio_intx.microvm.cards import edu, intel
from vfio_intx.microvm.cards.card import Asserter, Card, CardAsserter, SoftwareAsserter

__all__ = ["CARDS", "Asserter", "Card", "CardAsserter", "SoftwareAsserter", "card_for"]

CARDS: tuple[Card, ...] = (*intel.CARDS, edu.CARD)


def card_for(vendor: int, device: int) -> Card | None:
    """The card file for a function, None where only VFIO's software trigger is left."""
    return next((card for card in CARDS if (vendor, device) in card.ids), None)
