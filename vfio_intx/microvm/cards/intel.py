"""Intel's gigabit controllers: one register shows causes, others set, enable and disable them.

Offsets from the drivers' headers (``e1000_hw.h`` of e1000, ``regs.h`` of e1000e, ``e1000_regs.h`` of igb). The cause
used is bit 2, "link status change": raising it by hand changes nothing in the card. Reading the cause register clears
it; some of the later chips want the bits written back where the read did not, so the guest does both.
"""

from __future__ import annotations

from vfio_intx.microvm.cards.card import Card, Write
from vfio_intx.microvm.guest import Quiet

_INTEL = 0x8086
_LINK_STATUS_CHANGE = 1 << 2
_ALL = 0xFFFF_FFFF

_E1000 = (
    0x1000, 0x1001, 0x1004, 0x1008, 0x1009, 0x100C, 0x100D, 0x100E, 0x100F, 0x1010, 0x1011, 0x1012, 0x1013, 0x1014,
    0x1015, 0x1016, 0x1017, 0x1018, 0x1019, 0x101A, 0x101D, 0x101E, 0x1026, 0x1027, 0x1028, 0x1075, 0x1076, 0x1077,
    0x1078, 0x1079, 0x107A, 0x107B, 0x107C, 0x108A, 0x1099, 0x10B5,
)  # fmt: skip
_E1000E = (
    0x105E, 0x105F, 0x1060, 0x107D, 0x107E, 0x107F, 0x108B, 0x108C, 0x109A, 0x10A4, 0x10A5, 0x10B9, 0x10BC, 0x10D3,
    0x10D5, 0x10D9, 0x10DA, 0x10EA, 0x10EB, 0x10EF, 0x10F0, 0x10F6, 0x1502, 0x1503, 0x150C, 0x153A, 0x153B, 0x1559,
    0x155A, 0x156F, 0x1570, 0x15A0, 0x15A1, 0x15A2, 0x15A3, 0x15B7, 0x15B8, 0x15D7, 0x15D8,
)  # fmt: skip
_IGB = (
    0x10A7, 0x10A9, 0x10C9, 0x10D6, 0x10E6, 0x10E7, 0x10E8, 0x150A, 0x150D, 0x150E, 0x150F, 0x1510, 0x1511, 0x1516,
    0x1518, 0x1521, 0x1522, 0x1523, 0x1524, 0x1526, 0x1533, 0x1536, 0x1537, 0x1538, 0x1539, 0x157B, 0x157C, 0x1F40,
    0x1F41, 0x1F45,
)  # fmt: skip


def _card(name: str, devices: tuple[int, ...], cause: int, distance: int) -> Card:
    """The four registers lie one *distance* apart: cause, (distance 8: throttling between), set, enable, disable."""
    set_, enable, disable = cause + distance, cause + 2 * distance, cause + 3 * distance
    return Card(
        name=name,
        ids=frozenset((_INTEL, device) for device in devices),
        bar=0,
        enable=(Write(enable, _LINK_STATUS_CHANGE),),
        clear=(cause,),
        assert_=Write(set_, _LINK_STATUS_CHANGE),
        disable=(Write(disable, _ALL),),
        quiet=Quiet.WRITE_BACK,
        status=cause,
        acknowledge=cause,
    )


CARDS = (
    _card("e1000", _E1000, cause=0xC0, distance=8),
    _card("e1000e", _E1000E, cause=0xC0, distance=8),
    _card("igb", _IGB, cause=0x1500, distance=4),
)
