"""check as a monitoring plugin: its statuses, what it reads besides the host, what it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeTree
from vfio_intx.cli import check
from vfio_intx.cli.main import main
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.prediction import predict
from vfio_intx.diagnose.subject import VmFacts
from vfio_intx.errors import MissingError, UsageError, VfioIntxError
from vfio_intx.host.replay import from_bytes, to_bytes
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf

NIC = Bdf.parse("0000:00:10.0")


def checked(tree: FakeTree, *words: str) -> int:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return check.run(parser.parse_args(list(words)), tree.root)


def test_the_status_of_check_is_that_of_a_monitoring_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = nic_host(tmp_path / "good", net=("eth0",)).tree
    assert checked(good, "00:10.0") == 0
    assert checked(good, "00:10.0", "--irqchip", "split") == 1
    assert checked(good, "00:10.0", "--machine", "pc-q35-4.0") == 1
    assert checked(good, "00:10.0", "--machine", "pc-q35-4.0", "--irqchip", "on") == 0
    assert checked(nic_host(tmp_path / "group", group=None).tree, "00:10.0") == 2
    assert checked(nic_host(tmp_path / "asleep", power="D3cold").tree, "00:10.0") == 3
    statuses = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert statuses == ["OK", "WARNING", "WARNING", "OK", "CRITICAL", "UNKNOWN"]


@pytest.mark.parametrize("words", [["check"], ["check", "nonsense"], ["check", "00:10.0", "--no-such-option"]])
def test_a_usage_error_of_check_is_unknown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 3
    assert capsys.readouterr().err


def test_an_absent_function_makes_check_unknown(tmp_path: Path) -> None:
    with pytest.raises(VfioIntxError) as caught:
        checked(nic_host(tmp_path).tree, "ff:1f.7")
    assert caught.value.exit_status == 3


def test_check_reads_a_log_of_qemu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = nic_host(tmp_path / "host", net=("eth0",)).tree
    log = tmp_path / "qemu.log"
    log.write_bytes(b"\x1b[31mvfio: Error: Failed to setup INTx fd: Device or resource busy\n")
    assert checked(tree, "00:10.0", "--json", "--qemu-log", str(log)) == 2
    answer = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in answer["findings"]] == ["INTX003"]
    assert "\x1b" not in json.dumps(answer)
    with pytest.raises(MissingError):
        checked(tree, "00:10.0", "--qemu-log", str(tmp_path / "absent"))


def test_the_write_test_tells_a_card_whose_bit_does_not_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A file takes every write, as a card does whose DisINTx works.
    tree = nic_host(tmp_path, driver="").tree
    config = tree.directory("0000:00:10.0") / "config"
    before = config.read_bytes()
    assert checked(tree, "00:10.0", "--write-test", "--json") == 0
    assert config.read_bytes() == before
    assert json.loads(capsys.readouterr().out)["masking"]["verdict"] == "disintx"
    snapshot = take_snapshot(tree.root)
    broken = predict(snapshot.function(NIC), snapshot, VmFacts(disintx_changes=False))
    assert broken.subject.verdict.masking is Masking.EXCLUSIVE


def test_the_write_test_leaves_a_function_with_a_driver_and_a_dead_one_alone(tmp_path: Path) -> None:
    with pytest.raises(VfioIntxError, match="has the driver e1000"):
        checked(nic_host(tmp_path / "driven").tree, "00:10.0", "--write-test")
    dead = nic_host(tmp_path / "dead", driver="", dead=True).tree
    with pytest.raises(VfioIntxError, match="all ones; nothing was written"):
        checked(dead, "00:10.0", "--write-test")


def test_the_write_test_needs_the_card_itself(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a snapshot"):
        checked(nic_host(tmp_path).tree, "00:10.0", "--write-test", "--from", "x")


def test_no_name_splits_the_first_line_of_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A monitoring system takes what follows the first bar for performance data."""
    tree = nic_host(tmp_path, driver="vfio-pci").tree
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", "a|b")})
    checked(tree, "00:10.0")
    first = capsys.readouterr().out.splitlines()[0]
    assert first.count("|") == 1
    assert "a/b" in first


def test_an_owners_file_that_cannot_be_read_is_told_and_not_taken_for_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To a mere user libvirt's and Proxmox's files are closed; here root meets what not even root can read."""
    tree = nic_host(tmp_path, net=("eth0",)).tree
    for name in ("etc/libvirt/qemu/win10.xml", "etc/modprobe.d/a.conf"):
        (tree.path / name).mkdir(parents=True)
    (tree.path / "etc/pve").mkdir()
    (tree.path / "etc/pve/qemu-server").symlink_to("qemu-server")
    checked(tree, "00:10.0", "--json")
    unknown = json.loads(capsys.readouterr().out)["unknown"]["claims"]
    assert "/etc/libvirt/qemu/win10.xml: Is a directory" in unknown
    assert "/etc/modprobe.d/a.conf: Is a directory" in unknown
    assert "/etc/pve/qemu-server: Too many levels of symbolic links" in unknown
    assert "driverctl" not in unknown
    checked(tree, "00:10.0")
    assert f"  not seen: who else claims it: {unknown}\n" in capsys.readouterr().out
    there = take_snapshot(tree.root)
    assert from_bytes(to_bytes(there), "x").unread == there.unread
