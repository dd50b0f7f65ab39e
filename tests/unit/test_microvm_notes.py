"""What bench says about figures that are not what one would expect."""

from __future__ import annotations

import pytest

from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.contest import why_refired
from vfio_intx.microvm.figures import SchemeFigures
from vfio_intx.microvm.guest import Pin


@pytest.mark.parametrize(
    ("scheme", "early", "said"),
    [
        (Scheme.IRQFD, True, "acknowledges before the guest's EOI (seen"),
        (Scheme.IRQFD, False, "although KVM was seen to wait"),
        (Scheme.SPLIT, None, "the exit for the EOI came before"),
        (Scheme.ACK_EVENTFD, None, "answered a repeated run"),
        (Scheme.TRAP, None, "wrong guesses: 7;"),
    ],
)
def test_nothing_is_said_to_be_seen_that_was_not_tried(scheme: Scheme, early: bool | None, said: str) -> None:
    note = why_refired(SchemeFigures(scheme, Pin.IOAPIC, refired=7, early=early))
    assert said in note
    assert "7" in note
    assert ("seen" in note) == (early is not None)
