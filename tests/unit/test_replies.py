"""The replies of QEMU: what is taken, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.errors import PeerGarbage, UsageError
from vfio_intx.names import Bdf
from vfio_intx.qemu import replies
from vfio_intx.qemu.guestpci import candidate_gsis, default_device_id, parse_device_id

GOLDEN = Path(__file__).parent.parent / "golden" / "qemu"


def tree(name: str) -> list[replies.PciRoot]:
    return replies.parse(json.loads((GOLDEN / name).read_text()), replies.PciTree, "query-pci", "x")


def test_a_recorded_pci_tree_with_ports_and_bridges() -> None:
    found = {
        device.qdev_id or device.address: device
        for device, _ in replies.functions(tree("7.2-q35-ports-query-pci.json"))
    }
    assert found["rp0"].pci_bridge is not None
    assert found["00:1f.2"].irq_pin == 1
    assert not any(region.is_programmed for region in found["rp0"].regions)


def test_a_recorded_line_behind_a_root_port_is_where_its_guest_listened() -> None:
    functions = replies.functions(tree("7.2-q35-line-query-pci.json"))
    found = {device.qdev_id: (device, bridges) for device, bridges in functions}
    device, bridges = found["intx-0000-00-10-0"]
    assert device.address == "02:00.0"
    assert candidate_gsis("pc-q35-7.2-machine", device, bridges)[0] == 22


def test_what_is_below_a_bridge_comes_with_the_bridges_above() -> None:
    inner = {"bus": 2, "slot": 1, "function": 0, "qdev_id": "nic", "regions": [], "irq_pin": 1}
    middle = {"bus": 1, "slot": 0, "function": 0, "qdev_id": "br", "regions": [],
              "pci_bridge": {"bus": {"secondary": 2}, "devices": [inner]}}  # fmt: skip
    outer = {"bus": 0, "slot": 3, "function": 0, "qdev_id": "rp", "regions": [],
             "pci_bridge": {"bus": {"secondary": 1}, "devices": [middle]}}  # fmt: skip
    roots = replies.parse([{"bus": 0, "devices": [outer]}], replies.PciTree, "query-pci", "x")
    above = {device.qdev_id: [bridge.qdev_id for bridge in bridges] for device, bridges in replies.functions(roots)}
    assert above == {"rp": [], "br": ["rp"], "nic": ["rp", "br"]}


Place = tuple[replies.PciDevice, tuple[replies.PciDevice, ...]]


def view(slot: int, *, pin: int = 1, line: int | None = 10, bridges: tuple[int, ...] = ()) -> Place:
    def function(at: int) -> replies.PciDevice:
        return replies.PciDevice(0, at, 0, "", [], pin, line)

    return function(slot), tuple(function(bridge) for bridge in bridges)


@pytest.mark.parametrize(
    ("machine", "seen", "gsis"),
    [
        # The Interrupt Line register says nothing of a hot-plugged function: the guest routes the link as it likes.
        ("pc-i440fx-7.2-machine", view(2), (5, 10, 11)),
        ("pc-i440fx-7.2-machine", view(4, line=0), (5, 10, 11)),
        ("pc-i440fx-7.2-machine", view(2, pin=0), ()),
        ("pc-i440fx-7.2-machine", view(1), ()),
        ("pc-q35-7.2-machine", view(2), (22, 5, 10, 11)),
        ("pc-q35-7.2-machine", view(3, pin=2), (20, 5, 10, 11)),
        ("pc-q35-7.2-machine", view(0, bridges=(1,)), (21, 5, 10, 11)),
        ("pc-q35-7.2-machine", view(1, bridges=(1, 0)), (22, 5, 10, 11)),
        ("pc-q35-7.2-machine", view(31, pin=1, line=0), (16, 5, 10, 11)),
        ("pc-q35-7.2-machine", view(30, pin=1, line=0), (20, 5, 10, 11)),
        ("virt-7.2-machine", view(2), ()),
    ],
)
def test_the_gsis_that_a_line_can_be_on(machine: str, seen: Place, gsis: tuple[int, ...]) -> None:
    assert candidate_gsis(machine, *seen) == gsis


@pytest.mark.parametrize(
    "reply",
    [
        None,
        {},
        [{"bus": 0}],
        [{"bus": 0, "devices": [{"bus": 0, "slot": 32, "function": 0, "qdev_id": "", "regions": []}]}],
        [{"bus": 0, "devices": [{"bus": 0, "slot": 1, "function": 0, "qdev_id": "", "regions": [], "irq_pin": 9}]}],
        [{"bus": float("nan"), "devices": []}],
        [{"bus": 0, "devices": [{"bus": 0, "slot": 1, "function": 0, "qdev_id": "x" * 5000, "regions": []}]}],
        [{"bus": 0, "devices": []}] * 300,
    ],
)
def test_a_tree_of_another_shape_is_garbage(reply: object) -> None:
    with pytest.raises(PeerGarbage, match="query-pci"):
        replies.parse(reply, replies.PciTree, "query-pci", "x")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(_JSON)
def test_no_reply_gets_past_but_as_what_was_asked_for(reply: Any) -> None:
    with suppress(PeerGarbage):
        found = replies.parse(reply, replies.RunState, "query-status", "x")
        assert isinstance(found.running, bool)
        assert isinstance(found.status, str)


def test_ids_are_qemu_ids() -> None:
    assert parse_device_id(default_device_id(Bdf.parse("0000:05:00.0"))) == "intx-0000-05-00-0"
    for bad in ("", "7nic", "a b", "a,b", "nic\n", "ä", "a" * 64):
        with pytest.raises(UsageError):
            parse_device_id(bad)


#: Two threads parse replies of one type, the second while msgspec is in the middle of finding out about that type.
TWO_AT_ONCE = """
import threading
import msgspec
from vfio_intx.qemu import replies

middle, ended = threading.Event(), threading.Event()

def found_out_slowly():
    middle.set()
    ended.wait(1.0)
    return int

class Inner(msgspec.Struct):
    number: "found_out_slowly()"

class Outer(msgspec.Struct):
    inner: Inner
    name: str

found = []

def parse():
    found.append(replies.parse({"inner": {"number": 7}, "name": "x"}, Outer, "query", "a peer"))

first = threading.Thread(target=parse)
first.start()
middle.wait(10)
parse()
ended.set()
first.join()
assert found == [Outer(Inner(7), "x")] * 2, found
"""


def test_replies_are_parsed_in_several_threads_from_the_first_one_on() -> None:
    done = subprocess.run([sys.executable, "-c", TWO_AT_ONCE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
