"""``switch`` by the command line, on a fake host and a fake QEMU, stock and with the series."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.patched_vm import PatchedVm, line_state
from tests.fakes.qemu_vm import FakeVm
from tests.fakes.qmp_server import serving
from tests.fakes.ticking import ticking
from tests.fakes.tree import FakeTree
from vfio_intx.chain.scheme import Scheme
from vfio_intx.cli import switch as verb
from vfio_intx.cli.main import main

BDF = "0000:00:10.0"


@dataclass
class Bench:
    """A host whose line interrupts all the time, and the VM behind a socket."""

    tree: FakeTree
    spare: FakeTree
    vm: FakeVm
    capture: pytest.CaptureFixture[str]
    socket: Path
    count: int = 0
    traffic: bool = True

    def tick(self) -> None:
        """One interrupt, counted by the host first as on a real one."""
        if isinstance(self.vm, PatchedVm):
            self.vm.interrupt(self._count)
        else:
            self._count()

    def _count(self) -> None:
        # Renamed into its place, so that nobody ever reads half a file.
        self.count += 1
        self.spare.interrupts({21: (self.count, "IO-APIC 21-fasteoi", f"vfio-intx({BDF})")})
        (self.spare.root.path / "proc/interrupts").rename(self.tree.root.path / "proc/interrupts")

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Interrupts as long as the block lasts, if there is traffic."""
        with ticking(lambda: self.tick() if self.traffic else None, 0.001):
            yield

    def run(self, *words: str) -> tuple[int, str, str]:
        """Status, stdout and stderr of one command line."""
        # With traffic the wait ends at the first interrupt, however late a busy machine lets it come.
        prove = "30" if self.traffic else "0.2"
        with serving(self.socket, self.vm.script), self.interrupting():
            status = main(["switch", *words, "--qmp", str(self.socket), "--prove", prove])
        said = self.capture.readouterr()
        return status, said.out, said.err

    def json(self, scheme: str) -> dict[str, Any]:
        status, out, err = self.run(BDF, scheme, "--json")
        assert status == 0, err
        found: dict[str, Any] = json.loads(out)
        return found


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    vm = PatchedVm()
    made = Bench(FakeTree(tmp_path / "host"), FakeTree(tmp_path / "spare"), vm, capsys, tmp_path / "qmp")
    made.tick()
    monkeypatch.setattr(verb, "run", functools.partial(verb.run, root=made.tree.root))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return made


@pytest.mark.parametrize("scheme", ["trap", "ack-eventfd"])
def test_a_switch_is_proven_by_the_counters(bench: Bench, scheme: str) -> None:
    answer = bench.json(scheme)
    assert answer["schema"] == "vfio-intx/switch/1"
    assert (answer["before"], answer["now"], answer["proven"]) == ("irqfd", scheme, True), answer
    assert answer["switches"] == 1


def test_back_to_irqfd(bench: Bench) -> None:
    bench.vm.state = line_state(scheme="trap", wanted="trap", mmaps=False)  # type: ignore[attr-defined]
    answer = bench.json("irqfd")
    assert (answer["before"], answer["now"], answer["proven"]) == ("trap", "irqfd", True), answer


def test_irqfd_on_a_split_irqchip_is_called_split(bench: Bench) -> None:
    bench.vm.state = line_state(scheme="trap", wanted="trap", irqchip="split")  # type: ignore[attr-defined]
    assert bench.json("irqfd")["now"] == Scheme.SPLIT.value


def test_without_traffic_nothing_is_proven(bench: Bench) -> None:
    bench.traffic = False
    answer = bench.json("ack-eventfd")
    assert (answer["now"], answer["proven"]) == ("ack-eventfd", False)
    assert "configuration" in answer["why_not_proven"]


def test_another_user_is_told_so_before_anything_is_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    status, _, err = bench.run(BDF, "trap")
    assert (status, "needs root" in err) == (1, True)
    assert bench.vm.heard == []


def test_what_runs_already_is_left_alone(bench: Bench) -> None:
    status, out, _ = bench.run(BDF, "irqfd")
    assert status == 0
    assert "already" in out
    assert not any(request["execute"] == "qom-set" for request in bench.vm.heard)


def test_a_line_that_fell_back_is_tried_again(bench: Bench) -> None:
    bench.vm.state = line_state(scheme="trap", reason="Device or resource busy")  # type: ignore[attr-defined]
    assert bench.json("irqfd")["now"] == "irqfd"


def test_dry_run_prints_the_command_and_sends_nothing(bench: Bench) -> None:
    status, out, _ = bench.run(BDF, "trap", "--dry-run")
    arguments = {"path": "/machine/peripheral/nic", "property": "x-intx-scheme", "value": "trap"}
    assert status == 0
    assert json.loads(out) == {"execute": "qom-set", "arguments": arguments}
    assert not any(request["execute"] == "qom-set" for request in bench.vm.heard)


def test_stock_qemu_is_told_from_ours(bench: Bench) -> None:
    bench.vm = FakeVm()
    status, _, err = bench.run(BDF, "trap")
    assert status == 1
    assert "query-vfio-intx" in err
    assert "tools/build-qemu" in err
    assert "attach --scheme" in err


@pytest.mark.parametrize(
    ("state", "scheme", "reason"),
    [
        ({"mode": "msi", "scheme": None}, "trap", "its interrupt mode is msi"),
        ({"mode": "none", "scheme": None}, "trap", "its interrupt mode is none"),
        ({"irqchip": "split"}, "ack-eventfd", "kernel-irqchip=split"),
        ({"irqchip": "none", "scheme": "trap"}, "irqfd", "live in QEMU"),
        ({"host": "0000:00:11.0"}, "trap", "is not in the VM"),
        ({"host": "mdev-of-somebody"}, "trap", "is not in the VM"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    bench: Bench, state: dict[str, Any], scheme: str, reason: str
) -> None:
    bench.vm.state = line_state(**state)  # type: ignore[attr-defined]
    status, _, err = bench.run(BDF, scheme)
    assert status == 1
    assert reason in err
    assert not any(request["execute"] == "qom-set" for request in bench.vm.heard)


def test_the_reason_of_qemu_reaches_the_user_escaped(bench: Bench) -> None:
    bench.vm.refusal = "failed to setup \x1b[31mresample irqfd: Device or resource busy"  # type: ignore[attr-defined]
    status, _, err = bench.run(BDF, "trap")
    assert status == 1
    assert "Device or resource busy" in err
    assert "\x1b" not in err


def test_an_answer_that_is_not_true_is_noticed(bench: Bench) -> None:
    bench.vm.lies = True  # type: ignore[attr-defined]
    status, _, err = bench.run(BDF, "trap")
    assert status == 1
    assert "accepted trap" in err
    assert "runs irqfd" in err


@pytest.mark.parametrize(
    "change",
    [{"mode": "sideways"}, {"pin": 7}, {"interrupts": -1}, {"scheme": 3}, {"host": None}, {"gsi": 1 << 40}],
    ids=str,
)
def test_a_state_that_cannot_be_is_garbage(bench: Bench, change: dict[str, Any]) -> None:
    bench.vm.state = line_state(**change)  # type: ignore[attr-defined]
    status, _, err = bench.run(BDF, "trap")
    assert status == 1
    assert "query-vfio-intx" in err
    assert "protocol" in err


@pytest.mark.parametrize("scheme", ["split", "edge"])
def test_a_line_cannot_be_switched_to_every_scheme(bench: Bench, scheme: str) -> None:
    status, _, err = bench.run(BDF, scheme)
    assert status == 2
    assert "irqfd, ack-eventfd, trap" in err
