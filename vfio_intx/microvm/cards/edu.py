"""QEMU's teaching device ``edu`` (``docs/specs/edu.rst``): one register raises interrupts, another acknowledges them.

The value written is OR'ed into the status, and acknowledging takes bits out of it; the pin is up while it is not 0.
"""

from __future__ import annotations

from vfio_intx.microvm.cards.card import Card, Write
from vfio_intx.microvm.guest import Quiet

_INTERRUPT_STATUS, _RAISE, _ACKNOWLEDGE = 0x24, 0x60, 0x64
_CAUSE = 1
_ALL = 0xFFFF_FFFF

CARD = Card(
    name="edu",
    ids=frozenset({(0x1234, 0x11E8)}),
    bar=0,
    enable=(),
    clear=(),
    assert_=Write(_RAISE, _CAUSE),
    disable=(Write(_ACKNOWLEDGE, _ALL),),
    quiet=Quiet.WRITE_BACK,
    status=_INTERRUPT_STATUS,
    acknowledge=_ACKNOWLEDGE,
)
