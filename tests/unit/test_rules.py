"""The rules: the real cases, what each must and must not find, what it says and that it explains itself."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from tests.fakes.cases import CASES, Case, look
from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeTree
from vfio_intx.cli import explain
from vfio_intx.cli.main import main
from vfio_intx.diagnose.prediction import predict
from vfio_intx.diagnose.rules import RULES, codes
from vfio_intx.host.replay import from_bytes, to_bytes
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf

NIC = Bdf.parse("0000:00:10.0")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_a_real_case_has_exactly_its_findings(case: Case, tmp_path: Path) -> None:
    assert codes(look(case, tmp_path).findings) == case.expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_a_case_replayed_from_its_snapshot_is_the_same_case(case: Case, tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    case.build(tree)
    there = take_snapshot(tree.root)
    here = from_bytes(to_bytes(there), "x")
    assert here == there
    assert codes(predict(here.function(Bdf.parse(case.bdf)), here, case.vm).findings) == case.expected


def test_every_rule_of_the_first_twenty_is_seen_in_some_case() -> None:
    seen = {code for case in CASES for code in case.expected}
    assert {f"INTX{number:03}" for number in range(1, 21)} <= seen


def test_the_conflict_names_the_neighbour_and_the_exact_command(tmp_path: Path) -> None:
    (finding,) = [f for f in look(CASES[0], tmp_path).findings if f.code == "INTX001"]
    assert "ehci_hcd:usb3" in finding.summary
    assert finding.remedy == "echo 0000:00:1a.0 > /sys/bus/pci/drivers/ehci-pci/unbind"


def test_two_vfio_cards_on_one_line_are_not_each_others_host_driver(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.number == "5")
    (finding,) = [f for f in look(case, tmp_path).findings if f.code == "INTX019"]
    assert "0000:09:00.0" in finding.summary


def test_the_way_out_never_unbinds_what_a_running_vm_has(tmp_path: Path) -> None:
    """That write would block in the kernel until the VM ends; our own unbind refuses, and names the process."""
    case = next(case for case in CASES if case.number == "5")
    remedies = [finding.remedy for finding in look(case, tmp_path).findings if finding.code in ("INTX001", "INTX019")]
    assert remedies == ["vfio-intx unbind 0000:09:00.0"] * 2


def test_a_rival_that_we_have_bound_is_restored(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.number == "24")
    (tmp_path / "var/lib/vfio-intx").mkdir(parents=True)
    (tmp_path / "var/lib/vfio-intx/0000:09:00.0.record").write_text("")
    (finding,) = look(case, tmp_path).findings
    assert finding.remedy == "vfio-intx restore 0000:09:00.0"


COMMANDS = ("echo", "modprobe", "vfio-intx", "sudo", "dmesg")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_a_remedy_that_begins_as_a_command_can_be_typed_as_it_stands(case: Case, tmp_path: Path) -> None:
    for finding in look(case, tmp_path).findings:
        if finding.remedy and finding.remedy.startswith(COMMANDS):
            parsed = subprocess.run(["/bin/sh", "-n", "-c", finding.remedy], capture_output=True, text=True)
            assert parsed.stderr == ""


def test_a_card_in_d3cold_is_told_how_to_be_woken(tmp_path: Path) -> None:
    """Root reads no more of it than others: sudo is no remedy."""
    case = next(case for case in CASES if case.number == "18")
    (finding,) = look(case, tmp_path).findings
    control = "/sys/bus/pci/devices/0000:08:00.0/power/control"
    assert finding.remedy == f"echo on > {control} && vfio-intx check 0000:08:00.0"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_rule_explains_itself_and_names_its_source(rule: object, capsys: pytest.CaptureFixture[str]) -> None:
    code = getattr(rule, "code")  # noqa: B009
    assert explain.run(argparse.Namespace(code=code.lower(), json=False)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{code}: ")
    assert len(printed.splitlines()) >= 7
    assert "\nSource: " in printed


def test_a_card_whose_intx_is_hidden_has_no_scheme(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.number == "26")
    assert look(case, tmp_path).scheme is None


def test_an_unknown_code_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "INTX999"]) == 2
    assert "vfio-intx explain lists them" in capsys.readouterr().err


def test_what_is_no_command_does_not_look_like_one(tmp_path: Path) -> None:
    """ "modprobe kvm_amd, or kvm_intel" typed as it stands loads nothing."""
    tree = nic_host(tmp_path).tree
    (tree.path / "dev/kvm").unlink()
    snapshot = take_snapshot(tree.root)
    (finding,) = [f for f in predict(snapshot.function(NIC), snapshot).findings if f.code == "INTX028"]
    assert not (finding.remedy or "").startswith(COMMANDS)
