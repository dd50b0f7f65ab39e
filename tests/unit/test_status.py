"""status over all processes of a fake host: what is asked, what is only seen, and what is said to be in the way."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vfio_intx.cli.status
from tests.fakes import qmp_server as fake
from tests.fakes.qemu_vm import FakeVm
from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.chain.evidence import Evidence, Kind
from vfio_intx.chain.scheme import Scheme
from vfio_intx.cli.main import main
from vfio_intx.names import Bdf
from vfio_intx.observe.status import gather

BDF = "0000:00:10.0"
ID = "intx-0000-00-10-0"


class Host(FakeTree):
    """A host with one NIC on vfio-pci in group 4, whose line vfio handles."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.add(FakeFunction(BDF, irq=21, driver="vfio-pci", group=4))
        self.interrupts({21: (5, "IR-IO-APIC 21-fasteoi", f"vfio-intx({BDF})")})

    def qemu(self, pid: int, socket: Path | None, *, name: str, files: tuple[str, ...] = ()) -> None:
        """A running QEMU with that monitor and those files open."""
        words = ["qemu-system-x86_64", "-name", name, "-machine", "pc"]
        words += [] if socket is None else ["-qmp", f"unix:{socket},server=on"]
        self.process(pid, "qemu-system-x86", files)
        self.write(f"proc/{pid}/cmdline", "\0".join(words) + "\0")
        self.write(f"proc/{pid}/stat", f"{pid} (q) S " + " ".join(["1"] * 18) + " 500 0 0\n")
        self.link(f"proc/{pid}/exe", "usr/bin/qemu-system-x86_64")
        self.link(f"proc/{pid}/root", ".")


HOLDING = ("/dev/vfio/4", "anon_inode:[vfio-device]", "anon_inode:kvm-vm")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path / "host")
    run = functools.partial(vfio_intx.cli.status.run, root=found.root)
    monkeypatch.setattr(vfio_intx.cli.status, "run", run)
    return found


def status(capsys: pytest.CaptureFixture[str], timeout: str = "60") -> dict[str, dict[str, Any]]:
    """What ``status --json`` tells, by the VM's name."""
    assert main(["status", "--json", "--interval", "0.05", "--timeout", timeout]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "vfio-intx/status/1"
    return {vm["name"]: vm for vm in found["vms"]}


def attached() -> FakeVm:
    return FakeVm(devices={ID: {"driver": "vfio-pci", "host": BDF, "x-no-kvm-intx": False, "guest": "listens"}})


def test_a_machine_without_vms(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(capsys) == {}
    assert main(["status"]) == 0
    assert "no QEMU process" in capsys.readouterr().out


def test_a_vm_with_a_line_is_asked_and_one_without_is_not(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = attached()
    with (
        fake.serving(tmp_path / "a", asked.script) as path,
        fake.serving(tmp_path / "b", fake.saying(b"garbage\n")) as other,
    ):
        host.qemu(10, path, name="web", files=HOLDING)
        host.qemu(11, other, name="idle", files=("anon_inode:kvm-vm",))
        found = status(capsys)
    assert found["idle"]["lines"] == []
    assert found["idle"]["trouble"] == []
    (line,) = found["web"]["lines"]
    assert (line["device"], line["configured"], line["proven"]) == (BDF, "irqfd", False)
    assert (line["host_irq"], line["host_interrupts"]) == (21, 5)
    assert found["web"]["machine"] == "pc-i440fx-7.2-machine"


def test_a_monitor_is_left_between_the_samples(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connections: list[int] = []
    vm = attached()

    def script(line: fake.Line) -> None:
        connections.append(1)
        vm.script(line)

    with fake.serving(tmp_path / "a", script) as path:
        host.qemu(10, path, name="web", files=HOLDING)
        assert status(capsys)["web"]["trouble"] == []
    assert len(connections) == 2


def test_all_vms_are_asked_at_once_so_that_none_delays_another(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = threading.Barrier(2)
    vm = attached()

    def script(line: fake.Line) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(30.0)
        vm.script(line)

    with fake.serving(tmp_path / "a", script) as first, fake.serving(tmp_path / "b", script) as second:
        host.qemu(10, first, name="web", files=HOLDING)
        host.qemu(11, second, name="mail", files=HOLDING)
        found = status(capsys, timeout="60")
    assert not both.broken
    assert [len(found[name]["lines"]) for name in ("web", "mail")] == [1, 1]


def test_what_several_lines_of_a_vm_share_is_asked_once(host: Host, tmp_path: Path) -> None:
    vm = attached()
    second = "0000:00:11.0"
    host.add(FakeFunction(second, irq=22, driver="vfio-pci", group=5))
    vm.devices["second"] = {"driver": "vfio-pci", "host": second, "x-no-kvm-intx": True, "guest": "listens"}
    with fake.serving(tmp_path / "a", vm.script) as path:
        host.qemu(10, path, name="web", files=HOLDING)
        (found,) = gather(host.root, interval_s=0.01, budget_s=60.0)
    assert {line.bdf: line.configured for line in found.lines} == {
        Bdf.parse(BDF): Scheme.IRQFD,
        Bdf.parse(second): Scheme.TRAP,
    }
    asked = [request.get("arguments", {}).get("command-line", request["execute"]) for request in vm.heard]
    for question in ("query-pci", "info pic"):
        assert asked.count(question) == 1
    assert asked.count("info irq") == 2  # one for each of the two moments


def test_what_comes_while_vms_are_asked_is_in_no_window_of_the_host_and_in_those_of_qemu(
    host: Host, tmp_path: Path
) -> None:
    second = "0000:00:11.0"
    host.add(FakeFunction(second, irq=22, driver="vfio-pci", group=5))
    vms = {BDF: attached(), second: attached()}
    vms[second].devices[ID]["host"] = second
    turn, count = threading.Lock(), {BDF: 0, second: 0}

    def interrupts(bdf: str, more: int) -> None:
        with turn:
            count[bdf] += more
            vms[bdf].counts[vms[bdf].gsi] = count[bdf]
            numbers = {irq: (count[one], "IR-IO-APIC 21-fasteoi", f"vfio-intx({one})")
                       for irq, one in ((21, BDF), (22, second))}  # fmt: skip
            host.interrupts(numbers)

    @contextmanager
    def witness(bdf: Bdf, pid: int | None) -> Iterator[Sequence[Evidence]]:
        interrupts(str(bdf), 100)
        yield ()

    for bdf, vm in vms.items():
        vm.on_command = functools.partial(lambda bdf, command: interrupts(bdf, 1), bdf)
    with fake.serving(tmp_path / "a", vms[BDF].script) as a, fake.serving(tmp_path / "b", vms[second].script) as b:
        host.qemu(10, a, name="web", files=HOLDING)
        host.qemu(11, b, name="mail", files=HOLDING)
        found = gather(host.root, interval_s=0.01, budget_s=5.0, witness=witness)
    windows = {str(line.bdf): line.window for vm in found for line in vm.lines}
    assert windows.keys() == vms.keys()
    for window in windows.values():
        assert window is not None
        assert window.host == 100
        assert window.qemu is not None
        assert window.qemu > 100


def test_qemu_has_gone_round_its_main_loop_before_it_is_asked_for_its_last_counts(host: Host, tmp_path: Path) -> None:
    vm = attached()
    early: list[bool] = []

    def script(line: fake.Line) -> None:
        def settle(command: str) -> None:
            if command == "query-status":
                early.append(line.is_more(within_s=0.1))
                vm.counts[vm.gsi] = 7  # what was ready when it was asked is handled by now

        vm.on_command = settle
        vm.script(line)

    with fake.serving(tmp_path / "a", script) as path:
        host.qemu(10, path, name="web", files=HOLDING)
        (found,) = gather(host.root, interval_s=0.01, budget_s=5.0)
    assert early == [False]
    assert found.lines[0].window is not None
    assert found.lines[0].window.qemu == 7


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (fake.silent, "another client probably holds this monitor"),
        (fake.saying(b"x\n"), "does not talk QMP"),
        (fake.dies_on_command, "closed the connection"),
    ],
    ids=["silent", "garbage", "dies"],
)
def test_a_vm_that_cannot_be_asked_is_shown_with_what_the_host_tells(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str], script: fake.Script, words: str
) -> None:
    with fake.serving(tmp_path / "a", script) as path:
        host.qemu(10, path, name="web", files=HOLDING)
        found = status(capsys, timeout="0.3" if script is fake.silent else "60")["web"]
    assert any(words in trouble for trouble in found["trouble"])
    (line,) = found["lines"]
    assert (line["device"], line["host_irq"], line["host_interrupts"]) == (BDF, 21, 5)
    assert (line["scheme"], line["configured"], line["guest"]) == (None, None, "unknown")


def test_a_vm_that_dies_between_the_samples(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vm = attached()
    served: list[int] = []

    def once(line: fake.Line) -> None:
        served.append(1)
        if len(served) == 1:
            vm.script(line)

    with fake.serving(tmp_path / "a", once) as path:
        host.qemu(10, path, name="web", files=HOLDING)
        found = status(capsys, timeout="60")["web"]
    assert "hung up before its greeting" in found["trouble"][0]
    assert found["lines"][0]["host_irq"] == 21


@pytest.mark.parametrize("node", ["/dev/vfio/4", "/dev/vfio/devices/vfio7"])
def test_a_vm_without_a_monitor(host: Host, capsys: pytest.CaptureFixture[str], node: str) -> None:
    (host.path / f"sys/bus/pci/devices/{BDF}/vfio-dev/vfio7").mkdir(parents=True)
    host.qemu(10, None, name="web", files=(node, "anon_inode:kvm-vm"))
    found = status(capsys)["web"]
    assert "has no QMP socket" in found["trouble"][0]
    assert "--libvirt" in found["trouble"][0]
    assert found["lines"][0]["device"] == BDF


def test_a_process_that_may_not_be_looked_into(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    with fake.serving(tmp_path / "a", fake.saying(b"x\n")) as path:
        host.qemu(10, path, name="web", files=HOLDING)
        shutil.rmtree(host.path / "proc/10/fd")
        found = status(capsys)["web"]
    assert any("run it as root" in trouble for trouble in found["trouble"])
    assert found["lines"] == []


def test_names_of_strangers_are_escaped(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host.qemu(10, None, name="\x1b[2Jevil", files=HOLDING)
    assert list(status(capsys)) == ["\\x1b[2Jevil"]
    assert main(["status", "--interval", "0.05"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_further_evidence_counts_like_our_own(host: Host, tmp_path: Path) -> None:
    vm = attached()
    seen = Evidence(Kind.TRACE, "kvm_set_irq source 1", Scheme.IRQFD)
    watched: list[tuple[str, int | None]] = []

    @contextmanager
    def witness(bdf: Bdf, pid: int | None) -> Iterator[Sequence[Evidence]]:
        watched.append((str(bdf), pid))
        yield [seen]

    with fake.serving(tmp_path / "a", vm.script) as path:
        host.qemu(10, path, name="web", files=HOLDING)
        (found,) = gather(host.root, interval_s=0.05, budget_s=60, witness=witness)
    assert found.lines[0].verdict.proven
    assert found.lines[0].verdict.scheme is Scheme.IRQFD
    assert watched == [(BDF, 10)]


def test_a_trace_that_cannot_be_had_decides_nothing_and_says_why(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake.serving(tmp_path / "a", attached().script) as path:
        host.qemu(10, path, name="web", files=HOLDING)
        assert main(["status", "--json", "--interval", "0.05", "--trace"]) == 0
    (vm,) = json.loads(capsys.readouterr().out)["vms"]
    (item,) = [one for one in vm["lines"][0]["evidence"] if one["kind"] == "trace"]
    assert item["text"].startswith("not traced: ")
    assert item["speaks_for"] is None
