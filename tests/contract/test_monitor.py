"""What a monitor promises, on the fake VM and on the real QEMU of this machine: one suite for both."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes.qemu_vm import FakeVm
from tests.fakes.qmp_server import own_descriptors, serving
from vfio_intx.deadline import Deadline
from vfio_intx.errors import BusyError, MissingError, PeerGone, PeerRefused, PeerTimeout
from vfio_intx.host.root import HostRoot
from vfio_intx.qemu import replies
from vfio_intx.qemu.features import probe, read_controllers, read_counts, read_irqchip_kind
from vfio_intx.qemu.guestpci import find_bus, list_passed_through, qom_flag, qom_text
from vfio_intx.qemu.irqchip import IrqchipKind
from vfio_intx.qemu.monitor import Question, ask, human, human_question
from vfio_intx.qemu.transports import connect, listening_sockets

QEMU = shutil.which("qemu-system-x86_64")
BUDGET_S = 60.0


@pytest.fixture(params=["fake", "qemu"])
def vm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The QMP socket of a VM of machine ``pc`` without KVM, stopped before its first instruction."""
    path = tmp_path / "vm.sock"
    if request.param == "fake":
        with serving(path, FakeVm(ioapic="ioapic", lapic="apic", running=False, counts={0: 1}).script):
            yield path
        return
    if QEMU is None:
        pytest.skip("qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
    with start_qemu(path, "-machine", "pc"):
        yield path


class start_qemu:
    """A real QEMU under TCG, stopped, with one QMP socket; gone at the end."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self.command = [QEMU or "qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-S", "-display", "none",
                        "-nodefaults", "-qmp", f"unix:{path},server=on,wait=off", *options]  # fmt: skip

    def __enter__(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert Deadline.after("QEMU listens", 60).poll(lambda: str(self.path) in listening_sockets(HostRoot()).values())
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def test_a_monitor_answers_and_knows_its_process(vm: Path) -> None:
    with connect(vm, budget_s=BUDGET_S) as monitor:
        state = ask(monitor, "query-status", replies.RunState)
        assert not state.running
        assert monitor.peer_pid is not None
        assert Path(f"/proc/{monitor.peer_pid}").exists()


def test_a_refused_command_tells_class_and_words_and_leaves_the_monitor_usable(vm: Path) -> None:
    with connect(vm, budget_s=BUDGET_S) as monitor:
        with pytest.raises(PeerRefused) as caught:
            monitor.execute("device_del", {"id": "nothing"})
        assert "nothing" in caught.value.description
        assert caught.value.command == "device_del"
        assert ask(monitor, "query-status", replies.RunState).running is False


def test_commands_sent_together_are_answered_as_one_by_one(vm: Path) -> None:
    several: list[Question] = [
        ("query-status", None),
        ("device_del", {"id": "nothing"}),
        human_question("info irq"),
        ("no-such-command", None),
        ("qom-get", {"path": "/machine", "property": "type"}),
        ("qom-get", {"path": "/machine/peripheral", "property": "no-such-property"}),
        human_question("info pic"),
    ]
    with connect(vm, budget_s=BUDGET_S) as monitor:
        singly: list[object] = []
        for command, arguments in several:
            try:
                singly.append(monitor.execute(command, arguments))
            except PeerRefused as refusal:
                singly.append((refusal.error_class, refusal.description))
        together = monitor.execute_all(several * 5)
        plain = [(one.error_class, one.description) if isinstance(one, PeerRefused) else one for one in together]
        assert plain == singly * 5
        assert [isinstance(one, tuple) for one in singly] == [False, True, False, True, False, True, False]
        assert [one.command for one in together[:4] if isinstance(one, PeerRefused)] == [
            "device_del",
            "no-such-command",
        ]


def test_commands_sent_together_run_in_their_order(vm: Path) -> None:
    with connect(vm, budget_s=BUDGET_S) as monitor:
        steps: list[Question] = []
        for number in range(6):
            steps.append(("device_add", {"driver": "e1000", "id": f"nic{number}"}))
            steps.append(("qom-list", {"path": "/machine/peripheral"}))
        lists = [replies.parse(one, replies.Properties, "qom-list", "") for one in monitor.execute_all(steps)[1::2]]
        names = [{one.name for one in found if one.child_type is not None} for found in lists]
        assert names == [{f"nic{number}" for number in range(last + 1)} for last in range(6)]


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
def test_a_qemu_that_answers_late_is_given_up_and_still_answers_the_next(tmp_path: Path) -> None:
    path = tmp_path / "vm.sock"
    with start_qemu(path, "-machine", "pc") as process, connect(path, budget_s=BUDGET_S) as monitor:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(PeerTimeout, match="query-status"):
            monitor.execute_all([("query-status", None), ("query-pci", None)] * 10, budget_s=0.5)
        process.send_signal(signal.SIGCONT)
        assert ask(monitor, "query-name", replies.VmName) == replies.VmName()


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
def test_a_qemu_killed_under_several_commands_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "vm.sock"
    with start_qemu(path, "-machine", "pc") as process, connect(path, budget_s=BUDGET_S) as monitor:
        process.send_signal(signal.SIGSTOP)
        killer = threading.Timer(0.2, process.kill)
        killer.start()
        with pytest.raises(PeerGone):
            monitor.execute_all([("query-status", None)] * 20)
        killer.join()


def test_a_left_monitor_serves_the_next_client(vm: Path) -> None:
    for _ in range(3):
        with closing(connect(vm, budget_s=BUDGET_S)) as monitor:
            assert "IRQ statistics" in human(monitor, "info irq")


def test_a_second_client_is_told_that_another_one_holds_the_monitor(vm: Path) -> None:
    with (
        connect(vm, budget_s=BUDGET_S),
        pytest.raises(BusyError, match="another client holds the monitor"),
    ):
        connect(vm, budget_s=0.3)


def test_no_descriptor_is_left_whether_it_went_well_or_not(vm: Path) -> None:
    connect(vm, budget_s=BUDGET_S).close()  # whatever is opened once and for all is open now
    before = own_descriptors(vm)
    with connect(vm, budget_s=BUDGET_S), pytest.raises(BusyError):
        connect(vm, budget_s=0.3)
    connect(vm, budget_s=BUDGET_S).close()
    assert own_descriptors(vm) == before


def test_features_are_told_by_the_vm_itself(vm: Path) -> None:
    with connect(vm, budget_s=BUDGET_S) as monitor:
        features = probe(monitor)
        assert features.has_vfio
        assert features.can_choose_scheme
        assert {"device_add", "device_del", "qom-list", "query-pci"} <= features.commands


def test_interrupt_controllers_in_qemu_are_told_apart_from_kernel_ones(vm: Path) -> None:
    with connect(vm, budget_s=BUDGET_S) as monitor:
        assert read_irqchip_kind(monitor) is IrqchipKind.USERSPACE
        pins = read_controllers(monitor).ioapics[0].pins
        assert len(pins) == 24
        assert all(pin.masked for pin in pins)
        assert read_counts(monitor).of(0) == 1


def test_the_root_bus_of_a_pc_takes_a_device_while_it_runs(vm: Path) -> None:
    with connect(vm, budget_s=BUDGET_S) as monitor:
        assert find_bus(monitor).name == "pci.0"
        assert list_passed_through(monitor) == ()
        assert (qom_text(monitor, "/machine", "type") or "").startswith("pc-i440fx")
        assert qom_flag(monitor, "/machine/peripheral", "no-such-property") is None


def test_a_path_too_long_for_an_address_is_reached_all_the_same(vm: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    (deep / "vm.sock").hardlink_to(vm)
    with connect(deep / "vm.sock", budget_s=BUDGET_S) as monitor:
        assert ask(monitor, "query-status", replies.RunState).running is False


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (("-device", "pcie-root-port,id=rp0,chassis=1,slot=1"), "rp0"),
        (("-device", "pcie-root-port,id=off,chassis=1,slot=1,hotplug=off",
          "-device", "pcie-root-port,id=rp1,chassis=2,slot=2"), "rp1"),
        (("-device", "pcie-root-port,id=full,chassis=1,slot=1", "-device", "e1000,bus=full",
          "-device", "pcie-pci-bridge,id=bridge"), "bridge"),
        (("-device", "pcie-pci-bridge,id=bridge", "-device", "pcie-root-port,id=rp3,chassis=1,slot=1"), "rp3"),
        ((), None),
        (("-device", "pcie-root-port,chassis=1,slot=1"), None),
    ],
)  # fmt: skip
def test_a_q35_needs_a_free_port_or_bridge_with_a_name(
    tmp_path: Path, ports: tuple[str, ...], expected: str | None
) -> None:
    path = tmp_path / "vm.sock"
    with start_qemu(path, "-machine", "q35", *ports), connect(path, budget_s=BUDGET_S) as monitor:
        if expected is None:
            with pytest.raises(MissingError, match="no PCI bus with room") as caught:
                find_bus(monitor)
            assert "pcie-root-port" in (caught.value.hint or "")
        else:
            assert find_bus(monitor).name == expected


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
def test_a_qemu_that_ended_leaves_a_socket_on_which_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "vm.sock"
    with start_qemu(path, "-machine", "pc"):
        connect(path, budget_s=BUDGET_S).close()
    assert path.is_socket()
    with pytest.raises(PeerGone, match="nobody listens"):
        connect(path, budget_s=1)


@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
def test_a_killed_qemu_is_noticed_by_the_command_that_waits(tmp_path: Path) -> None:
    path = tmp_path / "vm.sock"
    with start_qemu(path, "-machine", "pc") as process, connect(path, budget_s=BUDGET_S) as monitor:
        process.kill()
        process.wait()
        for _ in range(2):
            with pytest.raises(PeerGone):
                monitor.execute("query-status")


def test_a_datagram_socket_is_not_a_monitor(tmp_path: Path) -> None:
    from vfio_intx.errors import KernelError

    path = tmp_path / "datagram"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        with pytest.raises(KernelError) as caught:
            connect(path, budget_s=1, root=HostRoot())
    assert caught.value.errno_name == "EPROTOTYPE"
