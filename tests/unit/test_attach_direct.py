"""``attach --direct`` by the command line: who can, who cannot, and that nothing of it is left behind."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import vfio_intx.cli.attach
from tests.fakes.qemu_vm import FakeVm, Refusal
from tests.fakes.qmp_server import QmpServer
from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.cli.main import main
from vfio_intx.deadline import Deadline

BDF = "0000:00:10.0"
ID = "intx-0000-00-10-0"
DIRECT = ("attach", BDF, "--direct", "--timeout", "60", "--prove", "0.1")


@dataclass
class PatchedVm(FakeVm):
    """A VM whose QEMU has our series; ``named`` are the descriptors that its monitor holds."""

    properties: tuple[str, ...] = ("host", "id", "x-no-kvm-intx", "x-intx-scheme", "x-intx-eventfds")
    named: list[str] = field(default_factory=list)
    ignores: bool = False

    def _query_commands(self) -> object:
        found = super()._query_commands()
        assert isinstance(found, list)
        return [*found, {"name": "getfd"}, {"name": "closefd"}]

    def _getfd(self, fdname: str) -> object:
        self.named.append(fdname)
        return {}

    def _closefd(self, fdname: str) -> object:
        if fdname not in self.named:
            raise Refusal(f"File descriptor named '{fdname}' not found")
        self.named.remove(fdname)
        return {}

    def _device_add(self, **arguments: Any) -> object:
        given = arguments.get("x_intx_eventfds", "")
        for name in given.split(":") if given else ():
            self._closefd(name)
        return super()._device_add(**arguments)

    def _query_vfio_intx(self) -> object:
        return [self._line(name, one) for name, one in self.devices.items()]

    def _line(self, name: str, device: dict[str, Any]) -> dict[str, object]:
        given = "x-intx-eventfds" in device and not self.ignores
        return {
            "qom-path": f"/machine/peripheral/{name}", "device-id": name, "host": device["host"], "mode": "intx",
            "wanted": "irqfd", "scheme": "trap", "irqchip": "kernel", "pin": 1, "route": "enabled", "gsi": self.gsi,
            "eventfds": "given" if given else "qemu", "pending": False, "mmaps": True, "interrupts": 0, "eois": 0,
            "switches": 0, "failures": 0,
        }  # fmt: skip


@pytest.fixture
def vm() -> PatchedVm:
    return PatchedVm()


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vm: PatchedVm) -> Iterator[Path]:
    tree = FakeTree(tmp_path / "host")
    tree.add(FakeFunction(BDF, irq=21, driver="vfio-pci", group=4))
    (tmp_path / "host/proc/self").symlink_to("/proc/self")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    run = functools.partial(vfio_intx.cli.attach.run, root=tree.root)
    monkeypatch.setattr(vfio_intx.cli.attach, "run", run)
    with QmpServer(tmp_path / "vm.sock", vm.script) as server:
        vm.on_death = server.close_soon
        yield tmp_path / "vm.sock"


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def settled(before: int) -> bool:
    """Whether no more descriptors are open than before, once the fake's own thread has closed its connection."""
    return Deadline.after("the fake to hang up", 60).poll(lambda: descriptors() <= before)


def test_the_device_is_added_on_eventfds_of_ours(
    vm: PatchedVm, socket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = descriptors()
    assert main([*DIRECT, "--qmp", str(socket), "--json"]) == 0, capsys.readouterr().err
    said = json.loads(capsys.readouterr().out)
    assert said["scheme"] in ("irqfd", None)
    added = [one["arguments"] for one in vm.heard if one["execute"] == "device_add"]
    trigger, resample = added[0]["x-intx-eventfds"].split(":")
    assert "trigger" in trigger
    assert "resample" in resample
    assert vm.named == [], "the command took both"
    assert settled(before), "our copies are closed"


@pytest.mark.parametrize("fault", ["getfd", "device_add"])
def test_a_refusal_leaves_no_device_and_no_descriptor(
    vm: PatchedVm, socket: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    vm.faults[fault] = "no"
    before = descriptors()
    assert main([*DIRECT, "--qmp", str(socket)]) == 1
    assert f"QEMU refused {fault}: no" in capsys.readouterr().err
    assert vm.named == []
    assert vm.devices == {}
    assert settled(before)


def test_a_qemu_that_takes_them_and_uses_its_own_is_found_out(
    vm: PatchedVm, socket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vm.ignores = True
    assert main([*DIRECT, "--qmp", str(socket)]) == 1
    assert "uses eventfds of 'qemu'" in capsys.readouterr().err
    assert vm.devices == {}, "the device is taken out again"


def test_a_stock_qemu_is_refused_before_anything(
    vm: PatchedVm, socket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vm.properties = ("host", "id", "x-no-kvm-intx")
    assert main([*DIRECT, "--qmp", str(socket)]) == 1
    assert "build-qemu" in capsys.readouterr().err
    assert not [one for one in vm.heard if one["execute"] in ("getfd", "device_add")]


def test_trap_has_no_eventfd_for_it(vm: PatchedVm, socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIRECT, "--scheme", "trap", "--qmp", str(socket)]) == 2
    assert "irqfd" in capsys.readouterr().err


def test_a_dry_run_says_what_it_would_do(vm: PatchedVm, socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIRECT, "--dry-run", "--qmp", str(socket)]) == 0
    assert "x-intx-eventfds" in capsys.readouterr().out
    assert vm.named == []
    assert vm.devices == {}
