"""A host with a card on vfio-pci and a VM, and the command line on both: for tests of attach, detach and status."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import vfio_intx.cli.attach
import vfio_intx.cli.detach
import vfio_intx.cli.status
from tests.fakes.qemu_vm import FakeVm
from tests.fakes.qmp_server import QmpServer
from tests.fakes.ticking import ticking
from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.cli.main import main

BDF = "0000:00:10.0"
ID = "intx-0000-00-10-0"
IRQ = 21
ATTACH = ("attach", BDF, "--timeout", "60", "--prove", "0.5")


@dataclass
class Bench:
    """A host with one NIC on vfio-pci, a VM, and traffic: each question to QEMU is answered after one interrupt."""

    tree: FakeTree
    vm: FakeVm
    socket: Path
    capture: pytest.CaptureFixture[str]
    count: int = 0
    traffic: bool = True
    raised_by_qemu: bool = False
    others: tuple[str, ...] = ()
    errors: str = field(default="", init=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False)

    def tick(self, command: str) -> None:
        """One interrupt, if the device is in the VM and its guest listens."""
        with self._turn:
            self._tick()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Interrupts by the clock while the block runs, some hundreds a second, whether QEMU is asked or not."""
        with ticking(lambda: self.tick(""), 0.002):
            yield

    def _tick(self) -> None:
        if ID not in self.vm.devices:
            self.tree.interrupts({})
            return
        if self.traffic and self.vm.devices[ID]["guest"] == "listens":
            self.count += 1
            if self.raised_by_qemu:
                self.vm.counts[self.vm.gsi] = self.vm.counts.get(self.vm.gsi, 0) + 1
        actions = ", ".join((f"vfio-intx({BDF})", *self.others))
        self.tree.interrupts({IRQ: (self.count, "IR-IO-APIC 21-fasteoi", actions)})

    def run(self, *argv: str) -> int:
        """One command line; its stderr is in ``errors``, its stdout still to be read."""
        return main([*argv, "--qmp", str(self.socket)])

    def json(self, *argv: str) -> dict[str, Any]:
        """One command line that must succeed; its JSON."""
        self.capture.readouterr()
        status = self.run(*argv, "--json")
        output = self.capture.readouterr()
        assert status == 0, output.err
        found: dict[str, Any] = json.loads(output.out)
        return found

    def refused(self, *argv: str) -> str:
        """One command line that must fail with status 1; what it says."""
        self.capture.readouterr()
        assert self.run(*argv) == 1
        output = self.capture.readouterr()
        assert output.out == ""
        assert "Traceback" not in output.err
        return output.err

    def sent(self, command: str) -> list[dict[str, Any]]:
        """The arguments of each such command that QEMU heard."""
        return [one.get("arguments", {}) for one in self.vm.heard if one["execute"] == command]


@contextmanager
def attach_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Bench]:
    """The bench, while its VM serves its monitor; this process plays root."""
    tree = FakeTree(tmp_path / "host")
    tree.add(FakeFunction(BDF, irq=IRQ, driver="vfio-pci", group=4))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for module in (vfio_intx.cli.attach, vfio_intx.cli.detach, vfio_intx.cli.status):
        monkeypatch.setattr(module, "run", functools.partial(module.run, root=tree.root))
    vm = FakeVm()
    found = Bench(tree, vm, tmp_path / "vm.sock", capsys)
    vm.on_command = found.tick
    with QmpServer(found.socket, vm.script) as server:
        vm.on_death = server.close_soon
        yield found
