"""The kernel's histogram tables, as Linux 6.12 prints them."""

from __future__ import annotations

import pytest

from vfio_intx.errors import MissingError
from vfio_intx.lab.tracecount import Count, parse_hist

TABLE = """\
# event histogram
#
# trigger info: hist:keys=irq,name:vals=hitcount:sort=hitcount:size=2048 [active]
#

{ irq:          4, name: serial                                             } hitcount:         24
{ irq:         20, name: vfio-intx(0000:00:10.0)                            } hitcount:      30000

Totals:
    Hits: 30024
    Entries: 2
    Dropped: 0
"""


def test_rows_and_their_keys() -> None:
    assert parse_hist(TABLE) == [
        Count({"irq": "4", "name": "serial"}, 24),
        Count({"irq": "20", "name": "vfio-intx(0000:00:10.0)"}, 30000),
    ]


def test_a_table_that_dropped_entries_is_no_count() -> None:
    with pytest.raises(MissingError, match="dropped 7"):
        parse_hist(TABLE.replace("Dropped: 0", "Dropped: 7"))


def test_an_empty_table() -> None:
    assert parse_hist("# event histogram\n\nTotals:\n    Hits: 0\n    Entries: 0\n    Dropped: 0\n") == []
