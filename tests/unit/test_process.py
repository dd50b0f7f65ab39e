"""QEMU processes and their monitors, found in a fake ``/proc``; and the parser of their command lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.tree import FakeTree
from vfio_intx.errors import MissingError, RefusedError
from vfio_intx.qemu.cmdline import keys, parse_command_line
from vfio_intx.qemu.process import find_process, find_processes, is_same, monitor_sockets


def argv(text: str) -> list[str]:
    return ["qemu-system-x86_64", *text.split()]


@pytest.mark.parametrize(
    ("words", "paths", "fds", "elsewhere"),
    [
        ("-qmp unix:/run/a.sock,server=on,wait=off", ["/run/a.sock"], [], 0),
        ("--qmp unix:a.sock,server,nowait -qmp-pretty unix:b.sock,server=on", ["a.sock", "b.sock"], [], 0),
        ("-qmp unix:/run/with,,comma,server=on", ["/run/with,comma"], [], 0),
        (
            "-chardev socket,id=q,path=/run/vm.qmp,server=on,wait=off -mon chardev=q,mode=control",
            ["/run/vm.qmp"],
            [],
            0,
        ),
        ("-mon q,mode=control -chardev socket,id=q,path=/run/late.qmp", ["/run/late.qmp"], [], 0),
        ("-chardev socket,id=charmonitor,fd=27,server=on -mon chardev=charmonitor,id=m,mode=control", [], [27], 0),
        ("-chardev socket,id=h,path=/run/human -mon chardev=h,mode=readline", [], [], 0),
        ("-monitor unix:/run/human,server=on", [], [], 0),
        ("-qmp tcp:127.0.0.1:4444,server=on", [], [], 1),
        ("-qmp stdio", [], [], 1),
        ("-chardev socket,id=t,host=127.0.0.1,port=4 -mon chardev=t,mode=control", [], [], 1),
        ("-mon chardev=missing,mode=control", [], [], 1),
        ("-S -qmp unix:/run/a.sock -nodefaults", ["/run/a.sock"], [], 0),
        ("", [], [], 0),
        ("-qmp", [], [], 1),
    ],
)
def test_monitors_on_a_command_line(words: str, paths: list[str], fds: list[int], elsewhere: int) -> None:
    found = parse_command_line(argv(words))
    assert [one.path for one in found.monitors if one.path] == paths
    assert [one.fd for one in found.monitors if one.fd is not None] == fds
    assert len(found.elsewhere) == elsewhere


@pytest.mark.parametrize(
    ("words", "name", "machine", "irqchip"),
    [
        ("-name web", "web", None, None),
        ("-name guest=web,debug-threads=on -machine q35,kernel-irqchip=split", "web", "q35", "split"),
        ("-M pc -accel kvm,kernel-irqchip=off", None, "pc", "off"),
        ("-machine type=pc-i440fx-7.2 -uuid 1", None, "pc-i440fx-7.2", None),
    ],
)
def test_who_a_vm_is(words: str, name: str | None, machine: str | None, irqchip: str | None) -> None:
    found = parse_command_line(argv(words))
    assert (found.name, found.machine, found.kernel_irqchip) == (name, machine, irqchip)


@given(st.lists(st.text(alphabet="abc=,-:/", max_size=12), max_size=8))
def test_no_command_line_breaks_the_parser(words: list[str]) -> None:
    parse_command_line(["qemu", *words])


@given(st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=3), st.text(alphabet="x,=/ ", max_size=8)))
def test_items_survive_the_doubling_of_commas(items: dict[str, str]) -> None:
    written = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in items.items())
    assert keys(written, "own") == (items or {"own": ""})


class Machine(FakeTree):
    """A fake tree with processes that have a command line, a start time and descriptors."""

    def qemu(
        self, pid: int, *words: str, program: str = "qemu-system-x86_64", started: int = 500, state: str = "S"
    ) -> None:
        self.write(f"proc/{pid}/cmdline", "\0".join((program, *words)) + "\0")
        fields = " ".join(["1"] * 18)
        self.write(f"proc/{pid}/stat", f"{pid} (a (b) c) {state} {fields} {started} 0 0\n")
        self.link(f"proc/{pid}/exe", f"usr/bin/{program}")
        self.link(f"proc/{pid}/root", ".")
        (self.path / f"proc/{pid}/fd").mkdir()

    def fd(self, pid: int, number: int, target: str, info: str = "") -> None:
        (self.path / f"proc/{pid}/fd/{number}").symlink_to(target)
        self.write(f"proc/{pid}/fdinfo/{number}", info)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_processes_are_found_with_what_they_hold(machine: Machine) -> None:
    machine.qemu(10, "-name", "web", "-machine", "pc")
    machine.fd(10, 11, "anon_inode:kvm-vm")
    machine.fd(10, 12, "/dev/vfio/4")
    machine.fd(10, 13, "anon_inode:[vfio-device]")
    machine.fd(10, 14, "anon_inode:[eventfd]", "pos:\t0\neventfd-count:                0\neventfd-id: 7\n")
    machine.qemu(11, program="bash")
    machine.qemu(12, state="Z")
    machine.write("proc/version", "Linux")
    (found,) = find_processes(machine.root)
    assert (found.pid, found.label) == (10, "web")
    held = found.descriptors.value
    assert held is not None
    assert held.kvm_vm
    assert (held.vfio_nodes, held.vfio_devices, held.eventfds) == (frozenset({"dev/vfio/4"}), (13,), frozenset({7}))


def test_a_pid_that_is_used_again_is_another_process(machine: Machine) -> None:
    machine.qemu(10, "-name", "web")
    found = find_process(machine.root, 10)
    assert is_same(machine.root, found)
    machine.write("proc/10/stat", "10 (x) S " + " ".join(["1"] * 18) + " 501 0 0\n")
    assert not is_same(machine.root, found)


def test_a_process_that_is_not_there_and_one_that_is_no_qemu(machine: Machine) -> None:
    machine.qemu(11, program="bash")
    with pytest.raises(MissingError, match="no process 10"):
        find_process(machine.root, 10)
    with pytest.raises(RefusedError, match="is not QEMU"):
        find_process(machine.root, 11)


def test_descriptors_that_may_not_be_seen_are_unknown_not_absent(machine: Machine) -> None:
    machine.qemu(10, "-name", "web")
    (machine.path / "proc/10/fd").rmdir()
    (found,) = find_processes(machine.root)
    assert not found.descriptors.is_known


def test_sockets_as_we_can_reach_them(machine: Machine) -> None:
    machine.qemu(10, "-qmp", "unix:/run/abs.sock", "-qmp", "unix:rel.sock", "-chardev", "socket,id=c,fd=27",
                 "-mon", "chardev=c,mode=control", "-qmp", "unix:/run/abs.sock")  # fmt: skip
    machine.fd(10, 27, "socket:[900]")
    machine.write(
        "proc/net/unix",
        "Num RefCount\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 900 /run/inherited.sock\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 901 /run/inherited.sock\n",
    )
    process = find_process(machine.root, 10)
    paths = [str(path) for path in monitor_sockets(machine.root, process)]
    assert paths == ["/run/abs.sock", str(machine.path / "proc/10/cwd/rel.sock"), "/run/inherited.sock"]


def test_a_socket_in_another_root_is_reached_through_the_process(machine: Machine) -> None:
    machine.qemu(10, "-qmp", "unix:/run/vm.sock")
    (machine.path / "proc/10/root").unlink()
    (machine.path / "container").mkdir()
    machine.link("proc/10/root", "container")
    (path,) = monitor_sockets(machine.root, find_process(machine.root, 10))
    assert path == machine.path / "proc/10/root/run/vm.sock"
