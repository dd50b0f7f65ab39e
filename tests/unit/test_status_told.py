"""``status`` on a QEMU that tells the state of its lines: believed as configuration, weighed like any other witness."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

import vfio_intx.cli.status
from tests.fakes import qmp_server as fake
from tests.fakes.patched_vm import PatchedVm, line_state
from tests.fakes.qemu_vm import FakeVm
from tests.unit.test_status import HOLDING, ID, Host, attached
from vfio_intx.chain.evidence import Evidence, Kind
from vfio_intx.chain.scheme import Scheme
from vfio_intx.cli.main import main
from vfio_intx.qemu.intx_state import IntxState
from vfio_intx.qemu.replies import parse
from vfio_intx.wiring.told import qemu_evidence, told_apart_by_mmaps


class Asked:
    """A host with one VM, asked by the command line."""

    def __init__(self, host: Host, socket: Path, capture: pytest.CaptureFixture[str]) -> None:
        host.qemu(10, socket, name="web", files=HOLDING)
        self._socket, self._capture = socket, capture

    def _run(self, vm: FakeVm, *words: str) -> str:
        with fake.serving(self._socket, vm.script):
            assert main(["status", "--interval", "0.05", *words]) == 0
        self._socket.unlink()
        return self._capture.readouterr().out

    def line(self, vm: FakeVm) -> dict[str, Any]:
        ((line,),) = [one["lines"] for one in json.loads(self._run(vm, "--json"))["vms"]]
        found: dict[str, Any] = line
        return found

    def words(self, vm: FakeVm) -> str:
        return self._run(vm)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Asked:
    host = Host(tmp_path / "host")
    monkeypatch.setattr(vfio_intx.cli.status, "run", functools.partial(vfio_intx.cli.status.run, root=host.root))
    return Asked(host, tmp_path / "a", capsys)


def patched(**changes: Any) -> PatchedVm:
    return PatchedVm(devices=attached().devices, state=line_state(device_id=ID, **changes))


def test_a_line_that_was_switched_is_not_said_to_run_what_its_options_said(asked: Asked) -> None:
    line = asked.line(patched(scheme="trap", wanted="trap", switches=1))
    assert line["configured"] == "trap"
    assert [item["speaks_for"] for item in line["evidence"] if item["kind"] == "configuration"] == ["trap"]
    assert (line["told"]["scheme"], line["told"]["switches"]) == ("trap", 1)


def test_a_fall_back_is_told_with_its_reason(asked: Asked) -> None:
    vm = patched(scheme="trap", wanted="irqfd", reason="Device or resource \x1b[31mbusy", failures=1)
    line = asked.line(vm)
    assert (line["configured"], line["told"]["failures"]) == ("irqfd", 1)
    told = asked.words(vm)
    assert "wanted irqfd, runs trap: Device or resource" in told
    assert "\x1b" not in told


def test_whose_eventfds_it_uses_is_told(asked: Asked) -> None:
    vm = patched(eventfds="given-ack")
    assert asked.line(vm)["told"]["eventfds"] == "given-ack"
    assert "another process unmasks" in asked.words(vm)


def test_a_device_without_intx_in_use_has_no_scheme(asked: Asked) -> None:
    line = asked.line(patched(mode="msi", scheme=None))
    assert [item["speaks_for"] for item in line["evidence"] if item["kind"] == "configuration"] == [None]
    assert line["told"]["mode"] == "msi"


def test_a_stock_qemu_is_told_of_as_before(asked: Asked) -> None:
    line = asked.line(attached())
    assert (line["configured"], line["told"]) == ("irqfd", None)
    assert line["evidence"][0]["text"].startswith("x-no-kvm-intx is off")


@pytest.mark.parametrize(
    ("scheme", "mmaps", "speaks_for"),
    [
        ("trap", False, Scheme.TRAP),
        ("ack-eventfd", True, Scheme.ACK_EVENTFD),
        # The timer has put them on again, or they are never on: nothing tells the two schemes apart.
        ("trap", True, None),
        ("ack-eventfd", False, None),
        # QEMU says that KVM carries it, and injects itself: that must contradict.
        ("irqfd", False, Scheme.TRAP),
        ("irqfd", True, Scheme.ACK_EVENTFD),
    ],
)
def test_who_of_the_two_injecting_schemes_it_is(scheme: str, mmaps: bool, speaks_for: Scheme | None) -> None:
    state = parse(line_state(scheme=scheme, mmaps=mmaps), IntxState, "x", "y")
    counted = told_apart_by_mmaps(Evidence(Kind.COUNTERS, "QEMU raised some", Scheme.TRAP), state)
    assert counted.speaks_for is speaks_for
    assert qemu_evidence(state).speaks_for is Scheme(scheme)


def test_a_count_that_says_kvm_is_left_as_it_is() -> None:
    state = parse(line_state(scheme="trap", mmaps=False), IntxState, "x", "y")
    counted = Evidence(Kind.COUNTERS, "QEMU raised none", Scheme.IRQFD)
    assert told_apart_by_mmaps(counted, state) is counted
