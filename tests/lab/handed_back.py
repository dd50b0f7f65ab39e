"""In L1: a test that leaves a card with another driver fails by itself, and does not take those after it with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.specs import SPECS
from vfio_intx.errors import MissingError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import LocalMachine, apply, read_binding
from vfio_intx.wiring.plan import Change, steps_of
from vfio_intx.wiring.steps import Binding


def bindings() -> dict[Bdf, Binding]:
    """Where the lab's cards are; one that is not in this lab, or was unplugged, is left out."""
    found = {}
    for bdf in sorted({card.bdf for spec in SPECS.values() for card in spec.cards if card.bus is None}):
        try:
            found[bdf] = read_binding(HostRoot(), bdf)
        except MissingError:
            continue
    return found


@pytest.fixture(autouse=True)
def _cards_handed_back() -> Iterator[None]:
    """A fixture of wider scope that has a card is older than this one, so what it holds does not count as left."""
    before = bindings()
    yield
    now = bindings()
    left = [bdf for bdf, binding in before.items() if now.get(bdf, binding) != binding]
    steps = [step for bdf in left for step in steps_of(Change(bdf, now[bdf], before[bdf]))]
    apply(LocalMachine(), steps, {})
    assert not left, f"left where they were not before: {', '.join(f'{bdf} {now[bdf]}' for bdf in left)}"
