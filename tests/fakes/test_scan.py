"""scan over fake hosts: what it says, and that no odd file makes it fail."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.cli import scan
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.prediction import Prediction, predict
from vfio_intx.errors import MissingError
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf
from vfio_intx.wiring.drivers import bind
from vfio_intx.wiring.ready import require_ready

NIC = "0000:00:10.0"


def scanned(tree: FakeTree, capsys: pytest.CaptureFixture[str], *bdfs: str) -> dict[str, Any]:
    assert scan.run(argparse.Namespace(bdf=list(bdfs), json=True, snapshot=None), tree.root) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "vfio-intx/scan/1"
    return answer


def predicted(tree: FakeTree, bdf: str = NIC) -> Prediction:
    snapshot = take_snapshot(tree.root)
    return predict(snapshot.function(Bdf.parse(bdf)), snapshot)


def test_a_nic_alone_on_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = nic_host(tmp_path, net=("eth0",)).tree
    function = scanned(tree, capsys)["functions"][0]
    assert (function["bdf"], function["pin"], function["irq"], function["interrupts"]) == (NIC, "A", 21, 7)
    assert (function["driver"], function["iommu_group"], function["group_members"]) == ("e1000", 4, [NIC])
    assert function["irq_users"] == []
    assert function["masking"]["verdict"] == "disintx"
    assert function["ready"]
    assert function["unknown"] == {}


def test_who_else_is_on_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = nic_host(tmp_path, net=("eth0",)).tree
    tree.add(
        FakeFunction("0000:00:1a.0", class_code=0x0C0320, driver="ehci-pci", group=9, irq=21, directories=("usb1",))
    )
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", "ehci_hcd:usb1, eth0")})
    nic, usb = scanned(tree, capsys)["functions"]
    assert (nic["irq_users"], nic["irq_neighbours"]) == (["ehci_hcd:usb1"], ["0000:00:1a.0"])
    assert (usb["irq_users"], usb["irq_neighbours"]) == (["eth0"], [NIC])


def test_a_shared_line_and_nointxmask_is_a_conflict_that_is_named(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, net=("eth0",)).tree
    tree.module("vfio_pci", nointxmask="Y")
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", "ehci_hcd:usb1, eth0")})
    prediction = predicted(tree)
    assert prediction.subject.verdict.masking is Masking.EXCLUSIVE
    assert not prediction.ready
    assert "ehci_hcd:usb1" in prediction.outlook[0]
    assert [finding.code for finding in prediction.findings] == ["INTX001"]


def test_alone_on_its_line_nointxmask_does_no_harm(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, net=("eth0",)).tree
    tree.module("vfio_pci", nointxmask="Y")
    assert predicted(tree).ready


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pin": 0}, "no interrupt pin"),
        ({"pin": 255}, "register reads 255"),
        ({"dead": True}, "all ones"),
        ({"header_type": 1}, "bridge"),
        ({"group": None}, "no IOMMU group"),
        ({"extra": {"physfn": ""}}, "virtual function"),
        ({"power": "D3cold"}, "could not be read"),
    ],
)
def test_what_stands_against_it_is_said(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    prediction = predicted(nic_host(tmp_path, **changes).tree)
    assert not prediction.ready
    assert says in prediction.outlook[0]


def test_a_parameter_that_only_an_intel_cpu_needs_is_not_asked_of_another(tmp_path: Path) -> None:
    kernel, bdf = nic_host(tmp_path / "host", group=None), Bdf.parse("00:10.0")
    (finding,) = (one for one in predicted(kernel.tree).findings if one.code == "INTX024")
    with pytest.raises(MissingError) as bound:
        bind(kernel, tmp_path / "state", [bdf])
    tree = nic_host(tmp_path / "bound", group=None, driver="vfio-pci").tree
    with pytest.raises(MissingError) as ready:
        require_ready(tree.root, bdf)
    for hint in (finding.remedy, bound.value.hint, ready.value.hint):
        assert "with an Intel CPU boot with intel_iommu=on" in (hint or "")


def test_a_live_sibling_is_named(tmp_path: Path) -> None:
    tree = nic_host(tmp_path).tree
    tree.add(FakeFunction("0000:00:10.1", driver="snd_hda_intel", group=4))
    assert "0000:00:10.1 (snd_hda_intel)" in predicted(tree).outlook[0]


def test_while_msi_is_in_use_the_line_is_unknown_and_not_the_vector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = nic_host(tmp_path, irq=40, msi=True, msi_enabled=True, msi_vectors=(40,)).tree
    function = scanned(tree, capsys)["functions"][0]
    assert function["irq"] is None
    assert "MSI" in function["unknown"]["irq"]


def test_a_sleeping_function_is_not_read(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, power="D3cold").tree
    assert take_snapshot(tree.root).function(Bdf.parse(NIC)).config.error is not None


def test_a_named_function_without_a_pin_is_shown_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = nic_host(tmp_path, pin=0).tree
    assert scanned(tree, capsys)["functions"] == []
    assert scanned(tree, capsys, "00:10.0")["functions"][0]["pin"] is None


def test_a_function_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"0000:ff:1f\.7"):
        scan.run(argparse.Namespace(bdf=["0000:ff:1f.7"], json=False, snapshot=None), nic_host(tmp_path).tree.root)


def test_a_host_without_pci(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    (tmp_path / "sys/bus/pci/devices").rmdir()
    with pytest.raises(MissingError, match="no PCI devices in /sys/bus/pci/devices"):
        take_snapshot(tree.root)


def test_a_dangling_entry_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = nic_host(tmp_path).tree
    tree.link("sys/bus/pci/devices/0000:00:11.0", "sys/devices/nowhere")
    assert [function["bdf"] for function in scanned(tree, capsys)["functions"]] == [NIC]


@pytest.mark.parametrize(
    "name", ["uevent", "irq", "driver_override", "enable", "power_state", "msi_bus", "reset_method"]
)
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"x" * 5000, "٣".encode(), b"99999999999999999999\n"])
def test_a_missing_or_senseless_file_makes_a_fact_unknown_and_no_failure(
    tmp_path: Path, name: str, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = nic_host(tmp_path).tree
    path = tree.directory(NIC) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert len(scanned(tree, capsys)["functions"]) == 1


def test_a_config_that_is_too_short_or_unreadable_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = nic_host(tmp_path).tree
    (tree.directory(NIC) / "config").write_bytes(b"\x86\x80")
    function = scanned(tree, capsys, NIC)["functions"][0]
    assert function["pin"] is None
    assert "only 2 bytes" in function["unknown"]["config"]


def test_the_table_has_a_row_and_an_outlook_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = nic_host(tmp_path, net=("eth0",)).tree
    scan.run(argparse.Namespace(bdf=[], json=False, snapshot=None), tree.root)
    head, row, outlook = capsys.readouterr().out.splitlines()
    assert head.split() == ["FUNCTION", "IDS", "PIN", "IRQ", "COUNT", "DRIVER", "GROUP", "MSI", "MASKING"]
    assert row.split() == [NIC, "8086:100e", "A", "21", "7", "e1000", "4", "-", "disintx"]
    assert outlook.strip() == "It can be bound to vfio-pci; IRQ 21 would be its alone, and it masks itself by DisINTx."


@pytest.mark.parametrize(
    ("quirk", "outlook"),
    [
        (
            {},
            "IRQ 21 would be its alone, and it masks itself by DisINTx; also wired to it, but not using it: "
            "0000:00:04.0 (MSI), 0000:00:05.0 (no driver), 0000:00:06.0 (snd_hda_intel).",
        ),
        (
            {"vendor": 0x10EC, "device": 0x8169},
            "IRQ 21 would be its alone (10ec:8169 is on the kernel's list of cards whose DisINTx is broken); "
            "also wired to it, but not using it: 0000:00:04.0 (MSI), 0000:00:05.0 (no driver), "
            "0000:00:06.0 (snd_hda_intel).",
        ),
    ],
)
def test_others_on_the_wire_that_leave_its_line_alone_are_named(
    tmp_path: Path, quirk: dict[str, object], outlook: str
) -> None:
    tree = nic_host(tmp_path, net=("eth0",), **quirk).tree
    for other in (
        FakeFunction("0000:00:04.0", driver="xhci_hcd", irq=21, msix=True, msi_enabled=True, msi_vectors=(40, 41)),
        FakeFunction("0000:00:05.0", irq=21),
        FakeFunction("0000:00:06.0", driver="snd_hda_intel", irq=21),
        FakeFunction("0000:00:07.0", driver="e1000", irq=22),
    ):
        tree.add(other)
    assert outlook in predicted(tree).outlook[0]
    tree.interrupts({21: (7, "IO-APIC 21-fasteoi", "eth0, uhci_hcd:usb1")})
    assert "also wired" not in predicted(tree).outlook[0]


def test_each_file_is_read_at_most_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = nic_host(tmp_path).tree
    tree.add(FakeFunction("0000:00:11.0", driver="e1000", group=5, irq=21))
    opened: Counter[str] = Counter()
    real_open = os.open

    def counting(path: Any, *args: Any, **kwargs: Any) -> int:
        fd = real_open(path, *args, **kwargs)
        opened[str(Path(f"/proc/self/fd/{fd}").readlink())] += 1
        return fd

    monkeypatch.setattr(os, "open", counting)
    take_snapshot(tree.root)
    files = {name: count for name, count in opened.items() if Path(name).is_file()}
    assert str(tmp_path / "proc/interrupts") in files
    assert str(tree.directory("0000:00:11.0") / "config") in files
    assert set(files.values()) == {1}


#: Keys of vfio-intx/scan/1 that programs may rely on: within the number, none may go.
PROMISED = frozenset(
    [
        "bdf",
        "vendor",
        "device",
        "subsystem",
        "class",
        "pin",
        "irq",
        "interrupts",
        "irq_users",
        "irq_neighbours",
        "driver",
        "driver_override",
        "iommu_group",
        "group_members",
        "msi",
        "msix",
        "power_state",
        "masking",
        "ready",
        "outlook",
        "scheme",
        "findings",
        "claims",
        "unknown",
    ]
)


def test_no_key_that_was_promised_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = scanned(nic_host(tmp_path).tree, capsys)
    assert {"schema", "kernel", "iommu", "vfio_pci_loaded", "functions"} <= set(answer)
    assert set(answer["functions"][0]) >= PROMISED


@pytest.mark.parametrize(
    ("changes", "pin"),
    [({"power": "D3cold"}, "?"), ({"dead": True}, "?"), ({"pin": 255}, "?"), ({"power": "D3cold", "pin": 0}, "?")],
)
def test_a_function_whose_pin_could_not_be_seen_is_not_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], pin: str
) -> None:
    """That a card sleeps does not say that it has no pin."""
    tree = nic_host(tmp_path, **changes).tree
    bridge = {"class_code": 0x060400, "header_type": 1, "power": "D3cold", "group": 9}
    tree.add(FakeFunction("0000:00:1c.0", **bridge))  # type: ignore[arg-type]
    assert [function["bdf"] for function in scanned(tree, capsys)["functions"]] == [NIC]
    scan.run(argparse.Namespace(bdf=[], json=False, snapshot=None), tree.root)
    assert capsys.readouterr().out.splitlines()[1].split()[2] == pin
