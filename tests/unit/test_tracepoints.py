"""Formats and pages: what the kernel writes is read back, what it would never write is noticed and never fatal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import trace_pages as ring
from vfio_intx.abi.tracepoints import (
    Event,
    PageDecoder,
    PageResult,
    Wanted,
    data_end,
    parse_format,
    parse_header_event,
    parse_header_page,
    parse_statistics,
)
from vfio_intx.errors import MissingError, VerifyError

PAIR = 40
DECODER = PageDecoder(ring.layout(), [Wanted(4, ring.pair_format(PAIR), ("gsi", "level"))])


def decode(page: bytes) -> tuple[list[Event], PageResult]:
    events: list[Event] = []
    return events, DECODER.decode(page, 1, events)


def test_records_of_every_kind_keep_their_times_and_fields() -> None:
    data = (
        ring.record(5, ring.pair(PAIR, 7, 20, 1))
        + ring.record(1 << 40, ring.pair(PAIR, -1, 21, -1))
        + ring.record(1, ring.pair(99, 7, 0, 0))  # an event of a type that nobody asked for
        + ring.record(2, ring.pair(PAIR, 8, 22, 0) + bytes(200))  # longer than a type can say
        + ring.stamp(1 << 50)
        + ring.record(3, ring.pair(PAIR, 9, 23, 1))
        + ring.head(29, 8) + (4).to_bytes(4, "little")  # a discarded record of one word
        + ring.record(4, ring.pair(PAIR, 9, 24, 1))
    )  # fmt: skip
    events, result = decode(ring.page(1000, data))
    first = 1005 + (1 << 40)
    assert result == PageResult(0, False, 1000)
    assert events == [
        (1005, 4, 1, (7, 20, 1)),
        (first, 4, 1, (-1, 21, -1)),
        (first + 3, 4, 1, (8, 22, 0)),
        ((1 << 50) + 3, 4, 1, (9, 23, 1)),
        ((1 << 50) + 7, 4, 1, (9, 24, 1)),
    ]


def test_padding_to_the_end_of_the_page_ends_it() -> None:
    data = ring.record(5, ring.pair(PAIR, 7, 20, 1)) + ring.head(29, 0) + bytes(64)
    events, result = decode(ring.page(0, data))
    assert len(events) == 1
    assert not result.damaged


def test_an_absolute_time_keeps_the_bits_above_it() -> None:
    start = (3 << 59) + 17
    events, _ = decode(ring.page(start, ring.stamp(5) + ring.record(1, ring.pair(PAIR, 7, 20, 1))))
    assert events[0][0] == (3 << 59) + 6


@pytest.mark.parametrize(
    ("page", "missed"),
    [
        (ring.page(0, b"", missed=12), 12),
        (ring.page(0, ring.record(1, ring.pair(PAIR, 1, 2, 3)), missed=1 << 33), 1 << 33),
        (ring.page(0, b"", flags=ring.MISSED), None),
        (ring.page(0, b""), 0),
    ],
)
def test_a_page_tells_what_was_lost_before_it(page: bytes, missed: int | None) -> None:
    assert decode(page)[1] == PageResult(missed, False)


def test_truncated_pages_give_what_is_whole_and_say_so() -> None:
    data = b"".join(ring.record(1, ring.pair(PAIR, 7, gsi, 1)) for gsi in range(10))
    whole = ring.page(0, data)
    for size in range(0, len(data) + 16, 4):
        events, result = decode(whole[:size])
        assert result.damaged
        assert not events  # the page's own length is not to be trusted
    cut = ring.page(0, data[:-4])
    events, result = decode(cut)
    assert result.damaged
    assert [event[3][1] for event in events] == list(range(9))


def test_a_record_too_short_for_its_event_is_damage_not_a_wrong_number() -> None:
    events, result = decode(ring.page(0, ring.record(1, ring.pair(PAIR, 7, 20, 1)[:12])))
    assert result.damaged
    assert not events


@given(st.lists(st.tuples(st.integers(0, 1 << 45), st.integers(-(1 << 31), (1 << 31) - 1), st.booleans()), max_size=80))
def test_what_is_written_is_read(written: list[tuple[int, int, bool]]) -> None:
    data = b"".join(ring.record(delta, ring.pair(PAIR if ours else 41, pid, 20, 1)) for delta, pid, ours in written)
    events, result = decode(ring.page(17, data))
    assert not result.damaged
    time, expected = 17, []
    for delta, pid, ours in written:
        time += delta
        if ours:
            expected.append((time, 4, 1, (pid, 20, 1)))
    assert events == expected


@given(st.binary(max_size=512), st.integers(0, 1 << 32), st.integers(0, 4096))
def test_no_page_is_fatal(data: bytes, commit: int, size: int) -> None:
    page = (bytes(8) + commit.to_bytes(8, "little") + data)[:size]
    events, _ = decode(page)
    assert len(events) <= len(page) // 12
    assert data_end(ring.layout(), page) <= len(page)


def test_a_field_that_the_kernel_lacks_is_named() -> None:
    with pytest.raises(MissingError, match=r"event pair of this kernel has no field irq_source_id") as caught:
        PageDecoder(ring.layout(), [Wanted(4, ring.pair_format(), ("gsi", "irq_source_id"))])
    assert "gsi" in str(caught.value.hint)


def test_fields_move_and_grow_from_kernel_to_kernel() -> None:
    moved = [("u64", "extra", 8, 8, False), ("__u8", "level", 16, 1, False), ("u64", "gsi", 24, 8, False)]
    text = ring.format_text("pair", 51, moved)
    decoder = PageDecoder(ring.layout(), [Wanted(4, parse_format(text), ("level", "gsi"))])
    body = ring.pair(51, 7, 0, 0)[:8] + bytes(8) + b"\x01" + bytes(7) + (1 << 40).to_bytes(8, "little")
    events: list[Event] = []
    decoder.decode(ring.page(0, ring.record(1, body)), 0, events)
    assert events == [(1, 4, 0, (7, 1, 1 << 40))]


def test_fields_that_are_no_numbers_or_come_in_another_order_are_refused() -> None:
    text = ring.format_text("pair", 51, [("char", "name[16]", 8, 16, False), ("int", "level", 24, 4, True)])
    with pytest.raises(VerifyError, match="not a number"):
        PageDecoder(ring.layout(), [Wanted(4, parse_format(text), ("name",))])
    with pytest.raises(VerifyError, match="another order"):
        PageDecoder(ring.layout(), [Wanted(4, ring.pair_format(), ("level", "gsi"))])


@pytest.mark.parametrize(
    "text",
    ["", "name: x\nformat:\n", "name: x\nID: 5\nformat:\n\tfield:int a;\toffset:0;\tsize:4;\tsigned:1;\n", "\0" * 999],
)
def test_a_file_that_is_no_format_is_refused(text: str) -> None:
    with pytest.raises(VerifyError):
        parse_format(text)


def test_a_type_in_another_place_is_refused() -> None:
    text = ring.format_text("pair", 51, []).replace("common_type;\toffset:0", "common_type;\toffset:2")
    with pytest.raises(VerifyError, match="unknown place"):
        parse_format(text)


def test_the_page_of_a_32_bit_kernel_is_understood_and_half_a_one_refused() -> None:
    narrow = ring.HEADER_PAGE.replace("commit;\toffset:8;\tsize:8", "commit;\toffset:8;\tsize:4")
    assert parse_header_page(narrow.replace("data;\toffset:16", "data;\toffset:12")).data == 12
    with pytest.raises(VerifyError):
        parse_header_page(ring.HEADER_PAGE.replace("commit", "comet"))


def test_another_record_head_is_refused() -> None:
    parse_header_event(ring.HEADER_EVENT)
    with pytest.raises(VerifyError, match="differently"):
        parse_header_event(ring.HEADER_EVENT.replace("27 bits", "26 bits"))


def test_statistics_add_up_every_kind_of_loss() -> None:
    text = "entries: 7\noverrun: 1\ncommit overrun: 2\nbytes: 300\noldest event ts:  1.5\ndropped events: 4\n"
    text += "read events: 9\n"
    found = parse_statistics(text)
    assert (found.entries, found.lost, found.read, found.bytes) == (7, 7, 9, 300)
    with pytest.raises(VerifyError):
        parse_statistics("nothing of the kind")
