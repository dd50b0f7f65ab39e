"""The QEMU processes of this machine, found in ``/proc``: who they are, what they hold, how to talk to them.

A process is named by its pid *and* its start time, because pids are used again. What may not be read (another user's
descriptors) is a note in the result, not a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from vfio_intx.chain.fact import Fact
from vfio_intx.errors import MissingError, RefusedError
from vfio_intx.host.holders import device_nodes
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.root import HostRoot, list_names, read_text
from vfio_intx.qemu.cmdline import CommandLine, MonitorAddress, parse_command_line
from vfio_intx.qemu.monitor import Monitor
from vfio_intx.qemu.transports import listening_sockets, open_first

_PROGRAM = re.compile(r"(?:qemu-system-[a-z0-9_]+|qemu-kvm|kvm|qemu)(?: \(deleted\))?")
_SOCKET = re.compile(r"socket:\[(?P<inode>[0-9]{1,19})\]")
_VFIO_NODE = re.compile(r"/dev/vfio/(?:devices/vfio)?[0-9]{1,9}")
_VFIO_DEVICE = re.compile(r"anon_inode:\[vfio-device\]|/dev/vfio/devices/vfio[0-9]+")
_DECIMAL = re.compile(r"[0-9]{1,9}")
_EVENTFD_ID = re.compile(r"^eventfd-id:\s+([0-9]{1,19})$", re.MULTILINE)


class Descriptors(msgspec.Struct, frozen=True):
    """What a process has open, as far as it matters here.

    :ivar vfio_devices: numbers of the vfio device descriptors.
    :ivar vfio_nodes: files of groups (``dev/vfio/N``) and devices (``dev/vfio/devices/vfioN``) that are open.
    :ivar eventfds: the kernel's ids of its eventfds (equal for copies of one eventfd).
    :ivar sockets: number and inode of each socket.
    """

    kvm_vm: bool
    vfio_devices: tuple[int, ...]
    vfio_nodes: frozenset[str]
    eventfds: frozenset[int]
    sockets: tuple[tuple[int, int], ...]


class QemuProcess(msgspec.Struct, frozen=True):
    """One running QEMU. ``started`` is in clock ticks since boot (``/proc/PID/stat``, field 22)."""

    pid: int
    started: int
    command_line: CommandLine
    descriptors: Fact[Descriptors]

    @property
    def label(self) -> str:
        """Its name, or its number where it has none."""
        return self.command_line.name or f"pid {self.pid}"


def find_processes(root: HostRoot) -> tuple[QemuProcess, ...]:
    """Every QEMU that runs now, by pid. One that ends while it is looked at is left out."""
    pids = sorted(int(name) for name in list_names(root.at("proc"), root=root).get(()) if _DECIMAL.fullmatch(name))
    found = (read_process(root, pid) for pid in pids)
    return tuple(process for process in found if process is not None)


def find_process(root: HostRoot, pid: int) -> QemuProcess:
    """The QEMU of that pid. :raise MissingError: no such process. :raise RefusedError: it is no QEMU."""
    if read_text(root.at("proc", str(pid), "stat"), root=root).value is None:
        raise MissingError(f"there is no process {pid}", hint="`vfio-intx status` lists the VMs that run")
    process = read_process(root, pid)
    if process is None:
        raise RefusedError(f"process {pid} is not QEMU", hint="`vfio-intx status` lists the VMs that run")
    return process


def read_process(root: HostRoot, pid: int) -> QemuProcess | None:
    """One process; None if it has ended, is a zombie or is no QEMU."""
    argv = _argv(root, pid)
    started = _start_time(root, pid)
    if not argv or started is None or not _PROGRAM.fullmatch(_program(root, pid, argv[0])):
        return None
    return QemuProcess(pid, started, parse_command_line(argv), read_descriptors(root, pid))


def is_same(root: HostRoot, process: QemuProcess) -> bool:
    """Whether that process still runs: same pid, same start time."""
    return _start_time(root, process.pid) == process.started


def _argv(root: HostRoot, pid: int) -> list[str]:
    text = read_text(root.at("proc", str(pid), "cmdline"), root=root).get("")
    return text.removesuffix("\0").split("\0") if text else []


def _program(root: HostRoot, pid: int, first_word: str) -> str:
    try:
        return root.at("proc", str(pid), "exe").readlink().name
    except OSError:
        return Path(first_word).name


def _start_time(root: HostRoot, pid: int) -> int | None:
    # The second field is the name in parentheses and may hold spaces and parentheses itself.
    fields = read_text(root.at("proc", str(pid), "stat"), root=root).get("").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X") or not fields[19].isdigit():
        return None
    return int(fields[19])


def read_descriptors(root: HostRoot, pid: int) -> Fact[Descriptors]:
    """What a process has open; unknown without the rights to look (root, or the same user)."""
    directory = root.at("proc", str(pid), "fd")
    names = list_names(directory, root=root)
    if names.value is None:
        return Fact.unknown(names.source, names.error or "unreadable")
    targets: dict[int, str] = {}
    for name in names.value:
        try:
            targets[int(name)] = str((directory / name).readlink())
        except (OSError, ValueError):
            continue
    sockets = ((fd, _SOCKET.fullmatch(target)) for fd, target in targets.items())
    return Fact.known(
        Descriptors(
            kvm_vm="anon_inode:kvm-vm" in targets.values(),
            vfio_devices=tuple(sorted(fd for fd, target in targets.items() if _VFIO_DEVICE.fullmatch(target))),
            vfio_nodes=frozenset(target[1:] for target in targets.values() if _VFIO_NODE.fullmatch(target)),
            eventfds=_eventfd_ids(root, pid, targets),
            sockets=tuple(sorted((fd, int(match["inode"])) for fd, match in sockets if match)),
        ),
        names.source,
    )


def _eventfd_ids(root: HostRoot, pid: int, targets: dict[int, str]) -> frozenset[int]:
    fds = (fd for fd, target in targets.items() if target == "anon_inode:[eventfd]")
    texts = (read_text(root.at("proc", str(pid), "fdinfo", str(fd)), root=root).get("") for fd in fds)
    return frozenset(int(match[1]) for text in texts if (match := _EVENTFD_ID.search(text)))


def holders_among(root: HostRoot, processes: Iterable[QemuProcess], function: PciFunction) -> tuple[QemuProcess, ...]:
    """Those of *processes* that have a function open: by its group, which may mean a sibling, or by its own file.

    One whose descriptors cannot be seen is not among them.
    """
    nodes = set(device_nodes(root, function.bdf, function.group.value))
    held = ((process, process.descriptors.value) for process in processes)
    return tuple(process for process, holds in held if holds is not None and nodes & holds.vfio_nodes)


def monitor_sockets(root: HostRoot, process: QemuProcess) -> tuple[Path, ...]:
    """The paths of a process's QMP sockets as we can reach them, in the order of its command line.

    A relative path starts at the directory where the process is; an absolute one is looked for in its own root
    first when that is another one than ours (a container). A monitor that was given as a descriptor is found by the
    inode of its socket.
    """
    descriptors = process.descriptors.value
    inodes = dict(descriptors.sockets) if descriptors is not None else {}
    listening = listening_sockets(root) if inodes else {}
    found = (_reachable(root, process.pid, one, inodes, listening) for one in process.command_line.monitors)
    return tuple(dict.fromkeys(path for path in found if path is not None))


def open_monitor_of(root: HostRoot, process: QemuProcess, *, budget_s: float) -> Monitor:
    """A monitor of that very VM.

    A path is not an identity: a QEMU that was started later may have taken it over, and what a container calls its
    socket may be a link to ours. So the process that answers must not be another QEMU. (It may be none: a manager that
    listens and hands the socket down.)

    :raise WorldError: as :func:`~vfio_intx.qemu.transports.open_first` does.
    """

    def is_another(pid: int) -> bool:
        return pid != process.pid and read_process(root, pid) is not None

    paths = monitor_sockets(root, process)
    return open_first(paths, f"VM {process.label}", budget_s=budget_s, root=root, is_another=is_another)


def _reachable(
    root: HostRoot, pid: int, address: MonitorAddress, inodes: dict[int, int], listening: dict[int, str]
) -> Path | None:
    if address.path is None:
        path = listening.get(inodes.get(address.fd, -1)) if address.fd is not None else None
        return Path(path) if path else None
    if not address.path.startswith("/"):
        return root.at("proc", str(pid), "cwd") / address.path
    inside = root.at("proc", str(pid), "root")
    try:
        same = inside.samefile(root.path)
    except OSError:
        same = True
    return Path(address.path) if same else inside / address.path.lstrip("/")
