"""On real sysfs: bind and restore killed at every boundary and at random moments, and a prediction that comes true."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.crash import dies_after, dies_at
from tests.lab.specs import NIC, TWIN
from vfio_intx.deadline import Deadline
from vfio_intx.host.root import HostRoot
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import LocalMachine, Machine, read_binding
from vfio_intx.wiring.drivers import bind, restore
from vfio_intx.wiring.steps import Binding

FIRST, VFIO = Binding("e1000", ""), Binding("vfio-pci", "vfio-pci")
RANDOM_KILLS, SEED = 20, 20261123


def do_bind(machine: Machine, state: Path) -> object:
    return bind(machine, state, [NIC.bdf])


def do_restore(machine: Machine, state: Path) -> object:
    return restore(machine, state, NIC.bdf)


def now(bdf: Bdf = NIC.bdf) -> Binding:
    return read_binding(HostRoot(), bdf)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """This machine, with the NIC on its first driver before and after."""
    assert now() == FIRST
    yield LocalMachine()
    restore(LocalMachine(), tmp_path / "state", NIC.bdf)
    assert now() == FIRST


def recovered(machine: Machine, state: Path) -> None:
    """After any kill: restore brings the first driver back, and a second restore changes nothing."""
    if state.exists():
        do_restore(machine, state)
    assert now() == FIRST
    assert restore(machine, state, NIC.bdf).writes == 0
    assert list(state.glob("0000*")) == []


@pytest.mark.l1
@pytest.mark.timeout(1000)
def test_bind_and_restore_killed_at_every_boundary(machine: Machine, tmp_path: Path) -> None:
    state, kills, twin = tmp_path / "state", 0, now(TWIN.bdf)
    for boundary in itertools.count():
        if not dies_at(boundary, machine, partial(do_bind, state=state)):
            break
        kills += 1
        recovered(machine, state)
    for boundary in itertools.count():
        do_bind(machine, state)
        assert now() == VFIO
        if not dies_at(boundary, machine, partial(do_restore, state=state)):
            break
        kills += 1
        recovered(machine, state)
    print(f"kills at boundaries: {kills}")
    assert kills >= 40
    assert now(TWIN.bdf) == twin


@pytest.mark.l1
@pytest.mark.timeout(1000)
def test_bind_killed_at_random_moments(machine: Machine, tmp_path: Path) -> None:
    state, draw, kills = tmp_path / "state", random.Random(SEED), 0
    for _ in range(RANDOM_KILLS):
        kills += dies_after(draw.uniform(0.01, 0.8), machine, partial(do_bind, state=state))
        recovered(machine, state)
    print(f"kills at random moments: {kills} of {RANDOM_KILLS} (seed {SEED})")
    assert kills


def vfio_intx(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vfio_intx", *words], capture_output=True, text=True, check=False)


def codes(*words: str) -> set[str]:
    """The codes that check finds for the NIC."""
    answer = vfio_intx("check", str(NIC.bdf), "--json", *words)
    return {found["code"] for found in json.loads(answer.stdout)["findings"]}


def qemu_with_the_nic(seconds: float) -> tuple[bool, str]:
    """Start QEMU with the NIC, stopped at its first instruction; whether it stayed up, and what it said."""
    argv = [
        "qemu-system-x86_64",
        "-machine",
        "q35",
        "-accel",
        "kvm",
        "-display",
        "none",
        "-nodefaults",
        "-S",
        "-m",
        "64",
    ]
    process = subprocess.Popen(
        [*argv, "-device", f"vfio-pci,host={NIC.bdf}"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    line = f"vfio-intx({NIC.bdf})"
    deadline = Deadline.after("QEMU requests the line", seconds)
    deadline.poll(lambda: process.poll() is not None or line in Path("/proc/interrupts").read_text())
    up = process.poll() is None
    process.kill()
    return up, process.communicate()[1]


@pytest.mark.l1(spec="shared")
@pytest.mark.timeout(600)
def test_a_predicted_conflict_comes_true_and_its_remedy_mends_it(tmp_path: Path) -> None:
    snapshot = take_snapshot(HostRoot())
    (interface,) = snapshot.function(TWIN.bdf).interfaces.get(())
    # The emulated network hands out addresses, and a NIC that has one is no longer told to move.
    Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1")
    subprocess.run(["ip", "link", "set", interface, "up"], check=True)
    state = ["--state-dir", str(tmp_path / "state")]
    assert vfio_intx("bind", str(NIC.bdf), *state).returncode == 0

    answer = vfio_intx("check", str(NIC.bdf), "--json")
    assert answer.returncode == 2, answer.stderr
    (conflict,) = [found for found in json.loads(answer.stdout)["findings"] if found["code"] == "INTX001"]
    print(conflict["summary"], "|", conflict["remedy"])
    assert interface in conflict["summary"]
    assert str(TWIN.bdf) in conflict["remedy"]

    up, said = qemu_with_the_nic(60)
    print(said)
    assert not up
    assert "Device or resource busy" in said
    (tmp_path / "qemu.log").write_text(said)
    assert {"INTX001", "INTX002", "INTX003"} <= codes("--qemu-log", str(tmp_path / "qemu.log"))

    subprocess.run(conflict["remedy"], shell=True, check=True)
    try:
        assert "INTX001" not in codes()
        up, said = qemu_with_the_nic(60)
        assert up, said
    finally:
        # The remedy took the other card from its driver, and that was no verb of ours with a record.
        Path("/sys/bus/pci/drivers_probe").write_text(str(TWIN.bdf))
    assert vfio_intx("restore", str(NIC.bdf), *state).returncode == 0
    assert now() == FIRST
    assert now(TWIN.bdf) == FIRST


@pytest.mark.l1(spec="group")
@pytest.mark.timeout(600)
def test_a_group_with_a_live_sibling_is_refused_and_goes_whole(tmp_path: Path) -> None:
    functions = take_snapshot(HostRoot()).functions.values()
    first, second = (function.bdf for function in functions if function.driver.value == "e1000")
    before = [now(first), now(second)]
    state = ["--state-dir", str(tmp_path / "state")]
    refused = vfio_intx("bind", str(first), *state)
    assert (refused.returncode, [now(first), now(second)]) == (1, before)
    assert f"{second} (e1000) would stay with the host" in refused.stderr
    assert not (tmp_path / "state").exists()
    assert vfio_intx("bind", "--group", str(first), *state).returncode == 0
    assert [now(first), now(second)] == [VFIO, VFIO]
    for bdf in (first, second):
        assert vfio_intx("restore", str(bdf), *state).returncode == 0
    assert [now(first), now(second)] == before


@pytest.mark.l1
def test_a_nic_with_an_address_but_no_route_is_refused(tmp_path: Path) -> None:
    """A /32 on an interface that is down is in no table of /proc by the interface's name."""
    (interface,) = take_snapshot(HostRoot()).function(TWIN.bdf).interfaces.get(())
    before, state = now(TWIN.bdf), ["--state-dir", str(tmp_path / "state")]
    subprocess.run(["ip", "link", "set", interface, "down"], check=True)
    subprocess.run(["ip", "address", "add", "192.0.2.7/32", "dev", interface], check=True)
    try:
        refused = vfio_intx("bind", str(TWIN.bdf), *state)
    finally:
        subprocess.run(["ip", "address", "del", "192.0.2.7/32", "dev", interface], check=True)
    assert (refused.returncode, now(TWIN.bdf)) == (1, before)
    assert f"has an address ({interface})" in refused.stderr
