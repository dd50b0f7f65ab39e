"""The ways to a monitor: which socket of several, whose socket, Proxmox's, libvirt's."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes import qmp_server as fake
from tests.fakes.qemu_vm import FakeVm
from tests.fakes.tree import FakeTree
from vfio_intx.cli.vm import add_timeout_argument, add_vm_arguments, open_monitor
from vfio_intx.errors import BusyError, MissingError, PeerGarbage, PeerGone, RefusedError, UsageError
from vfio_intx.host.root import HostRoot
from vfio_intx.qemu import replies
from vfio_intx.qemu.monitor import ask
from vfio_intx.qemu.transports import clients_of, connect, listening_sockets, open_first, proxmox_socket

ROOT = HostRoot()


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_vm_arguments(parser)
    add_timeout_argument(parser)
    return parser.parse_args([*argv, "--timeout", "60"])


def test_a_held_monitor_is_passed_over_for_the_next(tmp_path: Path) -> None:
    with (
        fake.serving(tmp_path / "held", fake.never_replies) as held,
        fake.serving(tmp_path / "free", FakeVm().script) as free,
        socket.socket(socket.AF_UNIX) as other,
    ):
        other.connect(str(held))
        assert other.recv(1)
        assert (clients_of(held, ROOT), clients_of(free, ROOT)) == (1, 0)
        with closing(open_first((held, free), "VM web", budget_s=60, root=ROOT)) as monitor:
            assert str(free) in monitor.name
        with pytest.raises(BusyError):
            open_first((held,), "VM web", budget_s=0.3, root=ROOT)


def test_a_dead_monitor_is_passed_over_and_garbage_is_told(tmp_path: Path) -> None:
    with (
        fake.serving(tmp_path / "bad", fake.saying(b"x\n")) as bad,
        fake.serving(tmp_path / "good", FakeVm().script) as good,
    ):
        gone = tmp_path / "gone"
        with closing(open_first((gone, good), "VM web", budget_s=60, root=ROOT)) as monitor:
            assert ask(monitor, "query-status", replies.RunState).running
        with pytest.raises(PeerGarbage):
            open_first((bad, good), "VM web", budget_s=60, root=ROOT)


def test_no_socket_at_all_says_how_to_get_one() -> None:
    with pytest.raises(MissingError, match="VM web has no QMP socket") as caught:
        open_first((), "VM web", budget_s=1, root=ROOT)
    assert "-qmp unix:" in (caught.value.hint or "")


def test_a_listening_socket_is_known_by_its_inode(tmp_path: Path) -> None:
    with fake.serving(tmp_path / "s", fake.silent) as path:
        assert str(path) in listening_sockets(ROOT).values()


def test_a_machine_without_the_table_of_sockets_has_none(tmp_path: Path) -> None:
    root = HostRoot(tmp_path)
    assert listening_sockets(root) == {}
    assert clients_of(tmp_path / "s", root) == 0


def test_proxmox_keeps_a_socket_for_each_vm(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path / "host")
    path = proxmox_socket("100", tree.root)
    path.parent.mkdir(parents=True)
    with (
        fake.serving(path, FakeVm().script),
        closing(open_monitor(arguments("--proxmox", "100"), tree.root)) as monitor,
    ):
        assert ask(monitor, "query-status", replies.RunState).running


def test_a_proxmox_vm_that_does_not_run_is_started_by_proxmox(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="VM 100 of Proxmox does not run here") as caught:
        open_monitor(arguments("--proxmox", "100"), FakeTree(tmp_path).root)
    assert caught.value.hint == "qm status 100; qm start 100"


@pytest.mark.parametrize("vmid", ["", "99", "1e3", "../100", "100\n", "9" * 12])
def test_what_is_no_number_of_a_proxmox_vm(vmid: str) -> None:
    with pytest.raises(UsageError):
        proxmox_socket(vmid, ROOT)


def test_libvirt_is_asked_by_name_and_its_qemu_is_found(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    tree.write("proc/10/cmdline", "qemu-system-x86_64\0-name\0guest=web,debug-threads=on\0")
    tree.write("proc/10/stat", "10 (q) S " + " ".join(["1"] * 18) + " 500 0 0\n")
    tree.link("proc/10/exe", "usr/bin/qemu-system-x86_64")
    monitor = open_monitor(arguments("--libvirt", "web"), tree.root)
    assert monitor.peer_pid == 10
    assert open_monitor(arguments("--libvirt", "other"), tree.root).peer_pid is None


def test_a_path_that_another_vm_has_taken_over_is_not_the_first_ones(tmp_path: Path) -> None:
    """Two QEMUs that were given one path: the later one answers, which is this process here."""
    tree = FakeTree(tmp_path / "host")
    with fake.serving(tmp_path / "vm.sock", FakeVm().script) as path:
        for pid, name in ((10, "first"), (os.getpid(), "second")):
            tree.write(f"proc/{pid}/cmdline", f"qemu-system-x86_64\0-name\0{name}\0-qmp\0unix:{path},server=on\0")
            tree.write(f"proc/{pid}/stat", f"{pid} (q) S " + " ".join(["1"] * 18) + " 500 0 0\n")
            tree.link(f"proc/{pid}/exe", "usr/bin/qemu-system-x86_64")
            tree.link(f"proc/{pid}/root", ".")
        with pytest.raises(PeerGone, match=f"another VM, process {os.getpid()}, answers at .*, not VM first"):
            open_monitor(arguments("--pid", "10"), tree.root)
        with closing(open_monitor(arguments("--pid", str(os.getpid())), tree.root)) as monitor:
            assert monitor.peer_pid == os.getpid()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's socket needs root: run the tests as root")
def test_a_socket_that_somebody_else_answers_is_refused(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import os, socket, sys
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(sys.argv[1])
        os.setuid(65534)
        sock.listen(1)
        print("listening", flush=True)
        sock.accept()[0].recv(1)
    """)
    path = tmp_path / "s"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        with pytest.raises(RefusedError, match=r"user 65534 answers at .*, which belongs to user 0"):
            connect(path, budget_s=60)
    assert process.returncode == 0
