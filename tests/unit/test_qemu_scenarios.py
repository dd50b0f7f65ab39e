"""What the scenarios of the patched QEMU call a failure: each count that can be wrong, wrong once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.test_demo import row
from vfio_intx.errors import UsageError, VerifyError
from vfio_intx.lab.demo_rows import BY_AGENT, IN_PATH, shortcomings, table
from vfio_intx.lab.echoes import parse_echoes
from vfio_intx.lab.live_line import Counts, base_and_number
from vfio_intx.lab.scenarios.qemu import (
    agent_in_path,
    demo,
    refusals,
    switch_under_load,
    toggled_mmaps,
    wirings,
)

COUNTS = {"host": 900, "traced": 900, "acks": 1000, "guest": 1000, "qemu": 500, "qemu_eois": 400}
AFTER = {"sent": 5, "received": 5, "held": False}
SWITCHED: dict[str, Any] = {
    "asked": 103, "switches": 103, "failures": 0, "stuck": 0, "pings": 400, "lost_pings": 0, "late_pings": 0,
    "driver_resets": 0, "slowest_ping_ms": 9.0, "by_our_verb": [{"asked": "trap", "now": "trap", "proven": True}],
    "interrupts": COUNTS, "afterwards": AFTER,
    "switch_us": {"all": {"p50": 1.0, "p90": 1.0, "p99": 2.0, "p999": 2.0, "max": 3.0}},
    "next_interrupt_us": {"all": {"p50": 1.0, "p90": 1.0, "p99": 2.0, "p999": 2.0, "max": 3.0}},
}  # fmt: skip
KILLED: dict[str, Any] = {
    "asked": 100, "kills": 100, "stuck": 0, "fall_back_ms": {"p50": 9.0, "p99": 90.0, "max": 99.0}, "pings": 400,
    "lost_pings": 0, "late_pings": 0, "driver_resets": 0, "slowest_ping_ms": 9.0,
    "interrupts": COUNTS, "eventfds": "qemu", "afterwards": AFTER,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"switches": 102}, "102 switches instead of 103"),
        ({"failures": 1}, "1 switches failed"),
        ({"stuck": 1}, "stood still after 1"),
        ({"lost_pings": 1}, "1 pings were lost"),
        ({"driver_resets": 1}, "reset the card 1 times"),
        ({"pings": 3, "lost_pings": 0}, "only 3 pings"),
        ({"interrupts": COUNTS | {"guest": 796, "acks": 796}}, "104 interrupts fewer"),
        ({"interrupts": COUNTS | {"traced": 899}}, "disagree"),
        ({"interrupts": COUNTS | {"acks": 999}}, "KVM heard 999 end"),
        ({"by_our_verb": [{"asked": "trap", "now": "trap", "proven": False}]}, "after vfio-intx switch: trap"),
        ({"by_our_verb": [{"asked": "trap", "now": "irqfd", "proven": True}]}, "after vfio-intx switch: trap"),
        ({"afterwards": AFTER | {"received": 4}}, "4 of 5 pings"),
        ({"afterwards": AFTER | {"held": True}}, "held"),
    ],
)  # fmt: skip
def test_a_run_of_switches_that_went_wrong_says_how(change: dict[str, Any], complaint: str) -> None:
    assert switch_under_load.failures(SWITCHED) == []
    (said,) = switch_under_load.failures(SWITCHED | change)
    assert complaint in said


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kills": 99}, "99 kills instead of 100"),
        ({"stuck": 1}, "stood still after 1"),
        ({"fall_back_ms": {"p50": 9.0, "p99": 90.0, "max": 1001.0}}, "1001.0 ms to take over"),
        ({"lost_pings": 1}, "1 pings were lost"),
        ({"driver_resets": 1}, "reset the card 1 times"),
        ({"pings": 99}, "only 99 pings"),
        ({"interrupts": COUNTS | {"guest": 699}}, "201 interrupts fewer"),
        ({"interrupts": COUNTS | {"traced": 901}}, "disagree"),
        ({"eventfds": "given-ack"}, "given-ack"),
        ({"afterwards": AFTER | {"held": True}}, "held"),
    ],
)
def test_a_run_of_kills_that_went_wrong_says_how(change: dict[str, Any], complaint: str) -> None:
    assert agent_in_path.failures(KILLED) == []
    (said,) = agent_in_path.failures(KILLED | change)
    assert complaint in said


def test_what_is_shown_has_every_witness() -> None:
    said = "\n".join([*switch_under_load.show(SWITCHED), *agent_in_path.show(KILLED)])
    assert all(word in said for word in ("host 900", "guest 1000", "acknowledged 1000", "p99", "at most 99.0 ms"))


def test_events_out_of_order_are_a_failure() -> None:
    assert refusals.failures({"causes": ["eventfds", "eventfds", "leash"]}) == []
    assert refusals.failures({"causes": ["leash", "eventfds", "eventfds"]})


def test_the_words_of_a_scenario_are_a_base_and_a_number() -> None:
    assert base_and_number(["300", "7.2"], 10) == (("7.2",), 300)
    assert base_and_number([], 10) == ((), 10)
    for words in (["1", "2"], ["0"]):
        with pytest.raises(UsageError):
            base_and_number(words, 10)


def test_counts_differ_field_by_field() -> None:
    assert Counts(9, 8, 7, 6, 5, 4).since(Counts(1, 2, 3, 4, 5, 0)) == Counts(8, 6, 4, 2, 0, 4)


def demo_result(**tap: object) -> dict[str, Any]:
    import msgspec

    rows = []
    for card, device in (("e1000", "0000:00:10.0"), ("pci-serial", "0000:00:11.0")):
        for scheme, wiring, wakeups in (
            ("irqfd", "QEMU", 0.0), ("ack-eventfd", "QEMU", 2.0), ("trap", "QEMU", 2.0), ("irqfd", IN_PATH, 1.0),
            ("irqfd", BY_AGENT, 0.0),
        ):  # fmt: skip
            one = row(
                card=card, device=device, scheme=scheme, proven=scheme, wiring=wiring, wakeups_per_interrupt=wakeups
            )
            rows.append(msgspec.to_builtins(one))
    tally = {"ended": "stopped", "refused": 0, "eois": 99, "wakeups": 99} | tap
    return {
        "lines": rows, "left_behind": [], "phases_s": {}, "kernel": "6.12",
        "qemu": {"qemu": {"major": 10, "minor": 0, "micro": 13}},
        "taps": {"0000:00:10.0": tally, "0000:00:11.0": tally},
    }  # fmt: skip


def test_the_demo_on_a_patched_qemu_wants_every_wiring() -> None:
    whole = demo_result()
    assert demo.failures(whole) == []
    assert "9 rows instead of 10" in demo.failures(whole | {"lines": whole["lines"][1:]})
    said = "\n".join(demo.show(whole))
    assert "10.0.13" in said
    assert f"irqfd,\n{IN_PATH}:" in said


@pytest.mark.parametrize("tap", [{"eois": 98}, {"refused": 1}, {"ended": "gone"}])
def test_a_tap_that_missed_something_is_a_failure(tap: dict[str, object]) -> None:
    assert len(demo.failures(demo_result(**tap))) == 2


def test_with_our_program_in_the_path_userspace_must_wake() -> None:
    assert shortcomings(row(wiring=IN_PATH))
    assert not shortcomings(row(wiring=IN_PATH, wakeups_per_interrupt=1.0))
    assert shortcomings(row(wiring=BY_AGENT, wakeups_per_interrupt=1.0))
    assert any(IN_PATH in line for line in table(demo_result()))


def raced(packets: list[float]) -> dict[str, Any]:
    return {
        "rates": {
            wirings.BASE: {"packets": [100.0, 200.0, 100.0], "interrupts": [90.0, 180.0, 90.0]},
            "trap by QEMU": {"packets": packets, "interrupts": [40.0, 80.0, 40.0]},
        },
        "rounds": 3, "pings": 9, "lost_pings": 0, "driver_resets": 0, "afterwards": AFTER,
    }  # fmt: skip


def test_wirings_are_compared_round_by_round() -> None:
    # The machine was twice as quick in the second round: the ratio does not notice.
    packets, interrupts, ratio, spread = wirings.ratios(raced([50.0, 100.0, 50.0]))["trap by QEMU"]
    assert (packets, interrupts, ratio, spread) == (50.0, 40.0, 0.5, 0.0)
    assert any("x 0.50" in line for line in wirings.show(raced([50.0, 100.0, 50.0])))


def test_a_wiring_that_carries_nothing_is_a_failure() -> None:
    assert wirings.failures(raced([50.0, 100.0, 50.0])) == []
    assert wirings.failures(raced([50.0, 0.0, 50.0])) == ["trap by QEMU carried no packet in round 2"]
    assert wirings.failures(raced([1.0, 1.0, 1.0]) | {"lost_pings": 1, "afterwards": AFTER | {"held": True}})


def test_echoes_are_counted_by_the_guests_kernel() -> None:
    text = "Icmp: InMsgs InEchos InEchoReps OutMsgs OutEchos\nIcmp: 7 0 5 9 6\n"
    assert parse_echoes(text) == (6, 5)
    for broken in ("", "Icmp: InMsgs\n", "Icmp: OutEchos InEchoReps\nIcmp: 1\n", "Icmp: InMsgs\nIcmp: 1\n"):
        with pytest.raises(VerifyError):
            parse_echoes(broken)


def test_a_card_that_had_to_be_reset_has_lost_writes() -> None:
    good = {"toggles": 4000, "driver_resets": 0, "pings": 9, "slowest_ping_ms": 1.0}
    assert toggled_mmaps.failures(good) == []
    assert toggled_mmaps.failures(good | {"driver_resets": 8}) == ["the guest's driver has reset the card 8 times"]
    assert toggled_mmaps.failures(good | {"toggles": 3})


def test_the_schemes_to_switch_between_can_be_named() -> None:
    words, order = switch_under_load._order_of(("7.2", "trap", "300", "irqfd"))
    assert (words, [scheme.value for scheme in order]) == (("7.2", "300"), ["trap", "irqfd"])
    assert len(set(switch_under_load._order_of(("7.2",))[1])) == 3
    with pytest.raises(UsageError):
        switch_under_load._order_of(("trap",))
