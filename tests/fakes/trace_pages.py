"""Ring-buffer pages written as the kernel writes them, and event formats, for tests of what reads them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vfio_intx.abi.tracepoints import EventFormat, PageLayout, parse_format, parse_header_page

HEADER_PAGE = (
    "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    "\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
    "\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;\n"
)
HEADER_EVENT = (
    "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n\tarray       :   32 bits\n\n"
    "\tpadding     : type == 29\n\ttime_extend : type == 30\n\ttime_stamp : type == 31\n\tdata max type_len  == 28\n"
)
MISSED, MISSED_STORED = 1 << 31, 1 << 30
SIZE = 4096


def layout() -> PageLayout:
    """The page of a 64-bit kernel."""
    return parse_header_page(HEADER_PAGE)


def format_text(name: str, identity: int, fields: Sequence[tuple[str, str, int, int, bool]]) -> str:
    """A ``format`` file; fields are (type, name, offset, size, signed)."""
    common = [
        ("unsigned short", "common_type", 0, 2, False),
        ("unsigned char", "common_flags", 2, 1, False),
        ("unsigned char", "common_preempt_count", 3, 1, False),
        ("int", "common_pid", 4, 4, True),
    ]
    lines = [
        f"\tfield:{kind} {field};\toffset:{offset};\tsize:{size};\tsigned:{int(signed)};"
        for kind, field, offset, size, signed in (*common, *fields)
    ]
    return f"name: {name}\nID: {identity}\nformat:\n" + "\n".join(lines) + '\n\nprint fmt: "x"\n'


def pair_format(identity: int = 40) -> EventFormat:
    """An event with an unsigned ``gsi`` and a signed ``level``."""
    fields = [("unsigned int", "gsi", 8, 4, False), ("int", "level", 12, 4, True)]
    return parse_format(format_text("pair", identity, fields))


def pair(identity: int, pid: int, gsi: int, level: int) -> bytes:
    """The record of a pair event."""
    return struct.pack("<HBBiIi", identity, 0, 0, pid, gsi, level)


def head(kind: int, delta: int) -> bytes:
    """A record's first word."""
    return struct.pack("<I", kind | (delta & (1 << 27) - 1) << 5)


def record(delta: int, body: bytes) -> bytes:
    """A data record *delta* ns after the one before it; a long one and a far one as the kernel has them."""
    before = b""
    if delta >= 1 << 27:
        before, delta = extend(delta), 0
    body += bytes(-len(body) % 4)
    if len(body) > 28 * 4:
        # The length counts its own word (rb_update_event).
        return before + head(0, delta) + struct.pack("<I", len(body) + 4) + body
    return before + head(len(body) // 4, delta) + body


def extend(delta: int) -> bytes:
    """A time extension."""
    return head(30, delta) + struct.pack("<I", delta >> 27)


def stamp(time: int) -> bytes:
    """An absolute time."""
    return head(31, time) + struct.pack("<I", time >> 27 & 0xFFFF_FFFF)


def page(time: int, data: bytes, *, flags: int = 0, missed: int | None = None, size: int = SIZE) -> bytes:
    """A whole page that starts at *time*; *missed* is stored behind the data."""
    stored = b"" if missed is None else struct.pack("<Q", missed)
    flags |= MISSED | MISSED_STORED if missed is not None else 0
    whole = struct.pack("<QQ", time, len(data) | flags) + data + stored
    assert len(whole) <= size
    return whole + bytes(size - len(whole))
