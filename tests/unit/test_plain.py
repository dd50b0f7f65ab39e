"""Named tuples in files: the shape that is promised there, and everything else refused as a ValueError."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from vfio_intx.abi.pciconf import ConfigSpace
from vfio_intx.chain.fact import Fact
from vfio_intx.chain.plain import from_json, to_json
from vfio_intx.host.pci import PciIds
from vfio_intx.names import Bdf, HostIrq
from vfio_intx.wiring.journal import Record, decode, encode
from vfio_intx.wiring.steps import Binding


class _File(NamedTuple):
    title: str
    card: Fact[PciIds]
    config: Fact[ConfigSpace]
    lines: dict[HostIrq, Fact[tuple[str, ...]]]
    pairs: tuple[tuple[Bdf, tuple[str, ...]], ...]
    names: frozenset[str]
    parent: Bdf | None = None


FILE = _File(
    "host",
    Fact.known(PciIds(0x8086, 0x100E, 0x1AF4, 0x1100, 0x020000), "/uevent"),
    Fact.known(ConfigSpace(bytes(range(64))), "/config"),
    {HostIrq(16): Fact.known(("ehci_hcd:usb1",), "/actions"), HostIrq(17): Fact.unknown("/actions", "No such file")},
    ((Bdf(0, 5, 0, 1), ("one", "two")),),
    frozenset({"irq"}),
    Bdf(0, 0, 1, 0),
)


def test_what_was_written_is_what_is_read() -> None:
    assert from_json(to_json(FILE), _File) == FILE


def test_a_file_has_keys_not_positions() -> None:
    written = json.loads(to_json(FILE))
    assert written["card"] == {
        "value": {
            "vendor": 0x8086,
            "device": 0x100E,
            "subsystem_vendor": 0x1AF4,
            "subsystem_device": 0x1100,
            "class_code": 0x020000,
        },
        "source": "/uevent",
        "error": None,
    }
    assert written["pairs"] == [[{"domain": 0, "bus": 5, "slot": 0, "function": 1}, ["one", "two"]]]
    assert set(written["lines"]) == {"16", "17"}


def test_keys_of_a_later_version_are_passed_over_and_missing_ones_get_their_default() -> None:
    written = json.loads(to_json(FILE))
    written["card"]["value"]["colour"] = "green"
    del written["parent"]
    assert from_json(json.dumps(written).encode(), _File) == FILE._replace(parent=None)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.pop("title"),
        lambda file: file.update(title=3),
        lambda file: file["card"].update(value={"vendor": "8086"}),
        lambda file: file["config"]["value"].update(raw="AAAA"),
        lambda file: file.update(pairs=[[1]]),
        lambda file: file.update(lines={"x": file["lines"]["16"]}),
    ],
)
def test_another_shape_is_refused(change: object) -> None:
    written = json.loads(to_json(FILE))
    assert callable(change)
    change(written)
    with pytest.raises(ValueError, match=r"\w"):
        from_json(json.dumps(written).encode(), _File)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"[" * 100_000])
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        from_json(raw, _File)


def test_records_keep_the_form_that_earlier_versions_wrote() -> None:
    body = (
        b'{"bdf":{"domain":0,"bus":5,"slot":0,"function":0},"ids":{"vendor":32902,"device":4110,'
        b'"subsystem_vendor":6900,"subsystem_device":4352,"class_code":131072},"first":{"driver":"e1000","override":""},'
        b'"goal":{"driver":"vfio-pci","override":"vfio-pci"},"settled":false}'
    )
    record = Record(
        Bdf(0, 5, 0, 0),
        PciIds(0x8086, 0x100E, 0x1AF4, 0x1100, 0x020000),
        Binding("e1000", ""),
        Binding("vfio-pci", "vfio-pci"),
        settled=False,
    )
    assert encode(record).partition(b"\n")[2] == body
    assert decode(encode(record), "file") == record
