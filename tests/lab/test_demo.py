"""The demo: it holds on this machine, and killed in the middle it leaves nothing that restore does not bring back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.losses import unless_lost
from tests.lab.specs import NIC, SERIAL
from vfio_intx.deadline import Deadline
from vfio_intx.errors import LabLost
from vfio_intx.lab.demo_rows import Row, rows, shortcomings
from vfio_intx.lab.run import PROJECT

CARDS = (NIC.bdf, SERIAL.bdf)


@pytest.mark.lab
@pytest.mark.timeout(0)
def test_the_demo_holds(tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    argv = [sys.executable, "-m", "vfio_intx", "lab", "run", "demo", "--json", str(file)]

    def demo() -> subprocess.CompletedProcess[str]:
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode == LabLost.exit_status:
            raise LabLost(done.stderr[-4000:])
        return done

    done = unless_lost(demo)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(file.read_bytes())
    assert result["schema"] == "vfio-intx/demo/1"
    found = {(row.card, row.scheme): row for row in rows(result)}
    assert set(found) == {(card, scheme) for card in ("e1000", "pci-serial") for scheme in ("irqfd", "trap")}
    for (_, scheme), row in found.items():
        assert row.proven == scheme
        assert row.sent == row.received > 0
        assert (row.wakeups_per_interrupt == 0) == (scheme == "irqfd")
    assert "proven by" in done.stdout


def _machine() -> dict[str, object]:
    found: dict[str, object] = {}
    for bdf in CARDS:
        device = Path(f"/sys/bus/pci/devices/{bdf}")
        found[f"driver {bdf}"] = (device / "driver").resolve().name
        found[f"override {bdf}"] = (device / "driver_override").read_text("ascii")
    found["instances"] = sorted(path.name for path in Path("/sys/kernel/tracing/instances").iterdir())
    listening = [line.split() for line in Path("/proc/net/unix").read_text("utf-8").splitlines()[1:]]
    found["sockets"] = sorted(words[7] for words in listening if len(words) > 7)
    return found


@pytest.mark.l1
@pytest.mark.timeout(480)
@pytest.mark.parametrize("when", ["bind ...", "attach 0000:00:11.0", "traffic, status and trace"])
def test_killed_in_the_middle_it_leaves_what_restore_brings_back(when: str, tmp_path: Path) -> None:
    before = _machine()
    argv = [sys.executable, "-m", "vfio_intx.lab.inside", "demo", str(tmp_path), "6.12"]
    environment = {**os.environ, "VFIO_INTX_STATE": str(tmp_path / "state")}
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as demo:
        assert demo.stdout is not None
        assert any(when in line for line in demo.stdout), "the demo ended before it came to that"
        demo.send_signal(signal.SIGKILL)
    # The verb that the demo was waiting for outlives it. A restore that comes before such a bind has begun finds
    # nothing to do, and is right: what it is to bring back must have happened.
    orphans = Deadline.after("what the demo had started has ended", 120)
    assert orphans.poll(lambda: not _session(demo.pid)), _session(demo.pid)
    for bdf in CARDS:
        group = (Path(f"/sys/bus/pci/devices/{bdf}") / "iommu_group").resolve().name
        released = Deadline.after("QEMU is gone", 60)
        assert released.poll(lambda group=group: not _held(group))  # type: ignore[misc]
        restored = [sys.executable, "-m", "vfio_intx", "restore", str(bdf)]
        done = subprocess.run(restored, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    # Of a QEMU that dies, the last thread closes the files, and the first is listed as dead before.
    Deadline.after("what QEMU had open is closed", 60).poll(lambda: _machine() == before)
    assert _machine() == before


def _session(leader: int) -> list[str]:
    """The processes of a session that still run, with their names."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text("utf-8", "replace").rpartition(") ")
        except OSError:
            continue
        state, _parent, _group, session, *_ = rest.split()
        if int(session) == leader and state not in "ZX":
            found.append(name)
    return found


def _held(group: str) -> bool:
    """Whether any process has the group's device file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == f"/dev/vfio/{group}":
                return True
        except OSError:
            continue
    return False


def row(**changes: object) -> Row:
    """A row that holds, but for *changes*."""
    good: dict[str, object] = {
        "device": "0000:00:10.0", "card": "e1000", "scheme": "irqfd", "host_interrupts": 99, "guest_interrupts": 99,
        "sent": 9, "received": 9, "unit": "pings", "proven": "irqfd", "evidence": ["a", "b"],
        "evidence_kinds": ["configuration", "trace"], "traced": 9, "lost_events": 0, "wakeups_per_interrupt": 0.0,
        "handler_to_ack_us": {"p50": 1.0, "p99": 2.0},
    }  # fmt: skip
    return rows({"lines": [good | changes]})[0]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"proven": None}, "not proven"),
        ({"proven": "trap"}, "not proven"),
        ({"evidence_kinds": ["trace", "trace"]}, "two kinds"),
        ({"received": 8}, "8 of 9 pings"),
        ({"sent": 0, "received": 0}, "0 of 0"),
        ({"host_interrupts": 1}, "host counted 1"),
        ({"guest_interrupts": 1}, "guest counted 1"),
        ({"traced": 0}, "0 interrupts were traced"),
        ({"lost_events": 1}, "1 events lost"),
        ({"wakeups_per_interrupt": 0.5}, "woke 0.5"),
        ({"wakeups_per_interrupt": None}, "woke None"),
        ({"scheme": "trap", "proven": "trap", "wakeups_per_interrupt": 0.0}, "woke 0.0"),
        ({"handler_to_ack_us": {"p50": None, "p99": None}}, "no latency"),
    ],
)
def test_a_row_that_does_not_hold_says_why(changes: dict[str, object], complaint: str) -> None:
    assert complaint in " ".join(shortcomings(row(**changes)))
    assert not shortcomings(row())
