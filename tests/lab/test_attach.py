"""attach, status, kick and detach on real vfio-pci and a running guest: the main job, by the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.lab.specs import NIC
from vfio_intx.abi.pciconf import ConfigSpace
from vfio_intx.abi.pidfd import borrow, open_process
from vfio_intx.abi.vfio import MASK, UNMASK, DeviceFile
from vfio_intx.cli.main import main
from vfio_intx.deadline import Deadline
from vfio_intx.host.root import HostRoot
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.qemu.process import find_process
from vfio_intx.wiring.verify import read_host_line

pytestmark = [pytest.mark.l1, pytest.mark.timeout(600)]

BDF = str(NIC.bdf)
#: Runs in the guest: whenever the card is there, bring it up and talk to the lab's gateway, five times a second.
TALK = (
    "while :; do for dev in /sys/class/net/eth*; do name=${dev##*/}; "
    "[ -e $dev ] && ip addr add 10.0.2.15/24 dev $name 2>/dev/null; ip link set $name up 2>/dev/null; done; "
    "ping -c 5 -i 0.2 -W 1 10.0.2.2; sleep 0.2; done >/dev/null 2>&1 &"
)


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The NIC on vfio-pci, and back with its first driver at the end."""
    state = str(tmp_path_factory.mktemp("state"))
    assert main(["bind", BDF, "--state-dir", state]) == 0
    yield
    assert main(["restore", BDF, "--state-dir", state]) == 0
    assert (Path("/sys/bus/pci/devices") / BDF / "driver").resolve().name == "e1000"


@pytest.fixture(scope="module")
def guest(bound: None) -> Iterator[Guest]:
    """A guest of machine ``pc`` that talks over the card as soon as it has it."""
    with Guest.start(GuestOptions(machine="pc", irqchip="on")) as found:
        found.load("e1000")
        found.run(TALK)
        yield found


@pytest.fixture
def capture(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    return capsys


def told(capture: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """The JSON of one command line that must succeed."""
    capture.readouterr()
    status = main([*argv, "--json"])
    output = capture.readouterr()
    assert status == 0, output.err
    found: dict[str, Any] = json.loads(output.out)
    return found


def line_of(status: dict[str, Any], pid: int) -> dict[str, Any]:
    """The one line of that VM."""
    (vm,) = [one for one in status["vms"] if one["pid"] == pid]
    assert vm["trouble"] == []
    (line,) = vm["lines"]
    assert isinstance(line, dict)
    return line


def is_closed(guest: Guest) -> bool:
    """Whether vfio has no handler for the card, and QEMU no descriptor of it."""
    held = find_process(HostRoot(), guest.pid).descriptors.value
    assert held is not None
    return read_host_line(HostRoot(), NIC.bdf) is None and not held.vfio_devices and not held.vfio_nodes


def assert_nothing_is_left(guest: Guest) -> None:
    """No handler, no descriptor, no mask: the card is as it was before it was attached."""
    root = HostRoot()
    assert is_closed(guest)
    assert not ConfigSpace((root.pci_device(NIC.bdf) / "config").read_bytes()[:256]).intx_asserted


def masked_at_rest(device: DeviceFile) -> bool:
    """Mask the line; False, and undone, if an interrupt was under way: its EOI would unmask the line again."""
    before = read_host_line(HostRoot(), NIC.bdf)
    open_then = not ConfigSpace((HostRoot().pci_device(NIC.bdf) / "config").read_bytes()[:256]).intx_disabled
    device.set_irqs(MASK)
    if open_then and read_host_line(HostRoot(), NIC.bdf) == before:
        return True
    device.set_irqs(UNMASK)
    return False


def reported(path: Path) -> dict[str, Any]:
    """The ``status.json`` of a report that is made now."""
    assert main(["report", "--output", str(path)]) == 0
    with tarfile.open(path) as archive:
        file = archive.extractfile("vfio-intx-report/status.json")
        assert file is not None
        found: dict[str, Any] = json.load(file)
    return found


@pytest.mark.parametrize("scheme", ["irqfd", "trap"])
def test_a_scheme_is_proven_while_traffic_flows_and_leaves_nothing(
    guest: Guest, capture: pytest.CaptureFixture[str], tmp_path: Path, scheme: str
) -> None:
    line = told(capture, "attach", BDF, "--qmp", str(guest.qmp), "--scheme", scheme, "--timeout", "60", "--prove", "60")
    assert (line["scheme"], line["proven"]) == (scheme, True), line
    assert line["guest"] == "listening"
    assert line["gsi"] in guest.interrupts()
    before = guest.interrupt_count("eth")
    # Again only where the guest stood still all the while.
    for _ in range(5):
        seen = line_of(told(capture, "status", "--interval", "4", "--trace"), guest.pid)
        if seen["window"]["host"]:
            break
    assert (seen["scheme"], seen["proven"]) == (scheme, True), seen
    report = reported(tmp_path / "report.tar.gz")
    assert line_of(report, guest.pid)["configured"] == scheme
    (qemu,) = [vm["qemu"] for vm in report["vms"] if vm["pid"] == guest.pid]
    assert qemu in subprocess.check_output([f"/proc/{guest.pid}/exe", "--version"], text=True).replace("(", "")
    assert {item["kind"] for item in seen["evidence"] if item["speaks_for"] == scheme} == {
        "configuration",
        "counters",
        "trace",
    }, seen
    assert guest.interrupt_count("eth") > before
    if scheme == "irqfd":
        assert seen["window"]["qemu"] == 0
    else:
        assert seen["window"]["qemu"] >= seen["window"]["host"]
    done = told(capture, "detach", BDF, "--pid", str(guest.pid), "--timeout", "60")
    assert (done["was_attached"], done["released"]) == (True, True)
    assert_nothing_is_left(guest)
    assert told(capture, "detach", BDF, "--pid", str(guest.pid))["was_attached"] is False


def test_a_line_masked_from_outside_is_dead_until_it_is_kicked(
    guest: Guest, capture: pytest.CaptureFixture[str]
) -> None:
    told(capture, "attach", BDF, "--qmp", str(guest.qmp), "--timeout", "60", "--prove", "60")
    root = HostRoot()
    held = find_process(root, guest.pid).descriptors.value
    assert held is not None
    with open_process(guest.pid) as pidfd, borrow(pidfd, held.vfio_devices[0], "QEMU") as fd:
        assert Deadline.after("a moment without an interrupt", 60).poll(lambda: masked_at_rest(DeviceFile(fd, BDF)))
    dead = read_host_line(root, NIC.bdf)
    dry = told(capture, "kick", BDF, "--dry-run")
    assert dry["before"]["masked"] is True
    assert dry["after"]["masked"] is True
    assert read_host_line(root, NIC.bdf) == dead, "a masked line counts nothing"
    told(capture, "kick", BDF)

    def alive() -> bool:
        now = read_host_line(root, NIC.bdf)
        return now is not None and dead is not None and now.count > dead.count + 3

    assert Deadline.after("interrupts again", 60).poll(alive)
    assert find_process(root, guest.pid).descriptors.value == held, "no descriptor of ours was left behind"
    told(capture, "detach", BDF, "--pid", str(guest.pid), "--timeout", "60")
    assert_nothing_is_left(guest)


def test_a_stopped_guest_does_not_let_go_until_it_runs_again(guest: Guest, capture: pytest.CaptureFixture[str]) -> None:
    told(capture, "attach", BDF, "--qmp", str(guest.qmp), "--timeout", "60")
    guest.execute("stop")
    for seconds in ("1", "10", "60"):  # for each command, too: QEMU has to answer within that
        assert main(["detach", BDF, "--qmp", str(guest.qmp), "--timeout", seconds]) == 1
        errors = capture.readouterr().err
        if "lets the device go" in errors:
            break
    assert "its vCPUs do not run: paused" in errors
    guest.execute("cont")
    told(capture, "detach", BDF, "--qmp", str(guest.qmp), "--timeout", "60")
    assert_nothing_is_left(guest)


def test_the_same_function_cannot_be_in_two_vms(guest: Guest, capture: pytest.CaptureFixture[str]) -> None:
    told(capture, "attach", BDF, "--qmp", str(guest.qmp), "--timeout", "60")
    assert main(["attach", BDF, "--qmp", str(guest.qmp)]) == 1
    assert "is in this VM already" in capture.readouterr().err
    told(capture, "detach", BDF, "--qmp", str(guest.qmp), "--timeout", "60")
    assert main(["kick", BDF]) == 1
    assert "no running QEMU has" in capture.readouterr().err


@pytest.mark.parametrize("moment", ["at once", "after device_add"])
def test_ctrl_c_takes_the_device_out_again(guest: Guest, moment: str) -> None:
    root = HostRoot()
    guest.run("rmmod e1000", seconds=60)  # so that attach waits for a driver, and is not done before the signal
    argv = [sys.executable, "-m", "vfio_intx", "attach", BDF, "--qmp", str(guest.qmp), "--timeout", "60"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if moment == "after device_add":
        assert Deadline.after("vfio's handler", 60).poll(lambda: read_host_line(root, NIC.bdf) is not None)
    else:
        assert Deadline.after("the client's start", 60).poll(lambda: _imports_are_done(process.pid))
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert output == ""
    assert "Traceback" not in errors
    # An interrupted attach has taken the device out, and does not wait until QEMU has closed it, too.
    assert Deadline.after("QEMU closes the device", 60).poll(lambda: is_closed(guest))
    assert_nothing_is_left(guest)
    guest.load("e1000")


def _imports_are_done(pid: int) -> bool:
    """Whether that client has connected: it has a socket open."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # a file of an import, closed while we look
            if str(entry.readlink()).startswith("socket:"):
                return True
    return False


@pytest.mark.parametrize(("irqchip", "scheme"), [("on", "irqfd"), ("split", "split")])
def test_a_q35_with_a_root_port(bound: None, capture: pytest.CaptureFixture[str], irqchip: str, scheme: str) -> None:
    port = ("-device", "pcie-root-port,id=rp0,chassis=1,slot=1")
    with Guest.start(GuestOptions(machine="q35", irqchip=irqchip, extra=port)) as guest:
        guest.load("e1000")
        guest.run(TALK)
        line = told(capture, "attach", BDF, "--qmp", str(guest.qmp), "--timeout", "60", "--prove", "60")
        assert (line["scheme"], line["proven"]) == (scheme, True), line
        assert line["gsi"] >= 16
        told(capture, "detach", BDF, "--qmp", str(guest.qmp), "--timeout", "60")
        assert_nothing_is_left(guest)


def test_a_qemu_killed_in_the_middle(bound: None) -> None:
    root = HostRoot()
    with Guest.start(GuestOptions(machine="pc")) as guest:
        argv = [sys.executable, "-m", "vfio_intx", "attach", BDF, "--qmp", str(guest.qmp), "--timeout", "60"]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert Deadline.after("vfio's handler", 60).poll(lambda: read_host_line(root, NIC.bdf) is not None)
        with open_process(guest.pid) as pidfd:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "closed the connection" in errors
    assert "stays bound to vfio-pci" in errors
    assert output == ""
    assert Deadline.after("the host's line is free", 60).poll(lambda: read_host_line(root, NIC.bdf) is None)
