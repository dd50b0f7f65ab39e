"""The VMs in a report: their lines and QEMUs, without their names, and whatever state they are in."""

from __future__ import annotations

import argparse
import functools
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import qmp_server as fake
from tests.fakes.qemu_vm import FakeVm
from tests.fakes.tree import FakeTree
from tests.unit.test_status import BDF, HOLDING, Host
from vfio_intx.cli import report
from vfio_intx.diagnose import vms

VERSION = {"qemu": {"major": 9, "minor": 2, "micro": 1}, "package": "Debian 1:9.2.1"}


class VersionedVm(FakeVm):
    """A fake VM that tells its version, or what a test has it tell."""

    version: object = VERSION

    def _query_version(self) -> object:
        return self.version


def attached(device_id: str) -> VersionedVm:
    return VersionedVm(devices={device_id: {"driver": "vfio-pci", "host": BDF, "x-no-kvm-intx": False, "guest": "-"}})


def reported(tree: FakeTree, path: Path, monkeypatch: pytest.MonkeyPatch, budget_s: float = 60.0) -> tuple[str, Any]:
    """All files of a report as one text, and its ``status.json``."""
    look = functools.partial(vms.look_at_vms, interval_s=0.05, budget_s=budget_s)
    monkeypatch.setattr(report, "look_at_vms", look)
    assert report.run(argparse.Namespace(output=path, dry_run=False), tree.root) == 0
    with tarfile.open(path) as opened:
        files = {member.name.rpartition("/")[2]: opened.extractfile(member) for member in opened.getmembers()}
        texts = {name: file.read().decode() for name, file in files.items() if file is not None}
    return "\n".join(texts.values()), json.loads(texts["status.json"])


def test_it_has_the_lines_as_status_has_them_and_the_version_of_qemu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path / "host")
    with fake.serving(tmp_path / "a", attached("payroll-nic").script) as path:
        host.qemu(10, path, name="payroll-acme", files=HOLDING)
        host.qemu(11, None, name="idle-acme")
        whole, told = reported(host, tmp_path / "r.tgz", monkeypatch)
    assert told["schema"] == "vfio-intx/status/1"
    vm, idle = told["vms"]
    assert (vm["pid"], vm["qemu"], vm["trouble"]) == (10, "9.2.1 Debian 1:9.2.1", [])
    (line,) = vm["lines"]
    assert (line["device"], line["configured"], line["host_irq"], line["host_interrupts"]) == (BDF, "irqfd", 21, 5)
    assert (idle["lines"], idle["qemu"]) == ([], None)
    assert (vm["name"][:3], line["id"][:7]) == ("vm-", "device-")
    assert vm["name"] != idle["name"]
    assert [state["device"] for state in told["states"]] == [BDF]
    for name in ("payroll", "acme"):
        assert name not in whole


@pytest.mark.parametrize("name", ["irqfd", "pc-i440fx-7.2-machine", "kernel", BDF])
def test_a_vm_that_is_called_as_one_of_our_words_costs_no_fact(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path / "host")
    with fake.serving(tmp_path / "a", attached("hostdev0").script) as path:
        host.qemu(10, path, name=name, files=HOLDING)
        (vm,) = reported(host, tmp_path / "r.tgz", monkeypatch)[1]["vms"]
    (line,) = vm["lines"]
    assert (line["device"], line["id"], line["configured"], line["irqchip"]) == (BDF, "hostdev0", "irqfd", "kernel")
    assert vm["machine"] == "pc-i440fx-7.2-machine"
    assert vm["name"] != name


@pytest.mark.parametrize("fault", ["hang", "die", "garbage", "No."])
def test_a_vm_that_cannot_be_asked_is_in_it_with_the_reason_and_does_not_hold_it_up(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, vm = Host(tmp_path / "host"), attached("nic0")
    with fake.serving(tmp_path / "payroll-acme", vm.script) as path:
        host.qemu(10, path, name="acme", files=HOLDING)
        vm.faults = {"qom-list": fault}
        whole, told = reported(host, tmp_path / "r.tgz", monkeypatch, budget_s=0.3)
    (found,) = told["vms"]
    assert found["qemu"] is None
    assert found["trouble"]
    assert [line["device"] for line in found["lines"]] == [BDF]
    assert "acme" not in whole
    assert os.fspath(path) not in whole


@pytest.mark.parametrize("version", ["9.2", {"qemu": {"major": "9"}}, {"qemu": VERSION["qemu"]}, [], None])
def test_a_version_that_is_none_costs_no_more_than_the_version(
    version: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, vm = Host(tmp_path / "host"), attached("nic0")
    vm.version = version
    with fake.serving(tmp_path / "a", vm.script) as path:
        host.qemu(10, path, name="acme", files=HOLDING)
        (found,) = reported(host, tmp_path / "r.tgz", monkeypatch)[1]["vms"]
    assert found["qemu"] is None
    assert [line["configured"] for line in found["lines"]] == ["irqfd"]
    assert "its version could not be asked" in found["trouble"][0]
