"""The ways to a VM's monitor: a socket by path, a process, libvirt's ``virsh``, Proxmox's socket.

A socket is looked at before anything is sent: it must be there, be a socket and no symbolic link, and whoever answers
must be root, us, or the socket's owner. One client at a time is served by a QMP socket, and a second one waits without
a word: ``/proc/net/unix`` tells the two apart, because the accepted connection carries the socket's path too.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from vfio_intx.deadline import Deadline
from vfio_intx.errors import BusyError, KernelError, MissingError, PeerGone, PeerTimeout, RefusedError, UsageError
from vfio_intx.host.root import HostRoot, read_text
from vfio_intx.names import parse_natural
from vfio_intx.qemu.monitor import DEFAULT_BUDGET_S, Monitor, QmpMonitor

#: sun_path of struct sockaddr_un has 108 bytes, the last one for the terminator (include/uapi/linux/un.h).
LONGEST_SUN_PATH = 107
_LONGEST_PATH = 4095
_LONGEST_NAME = 255 - len("/proc/self/fd/99999/")
_UCRED = struct.Struct("=iII")
_CONNECTED_WITH_INODE = re.compile(r"[0-9a-f]+: \S+ \S+ \S+ 0001 03 +(?!0 )[0-9]+ (?P<path>.*)")
_LISTENING = re.compile(r"[0-9a-f]+: \S+ \S+ 00010000 0001 01 +(?P<inode>[0-9]+) (?P<path>.*)")

PROXMOX_SOCKETS = "var/run/qemu-server"
_DEFAULT_ROOT = HostRoot()


def check_socket(path: Path) -> os.stat_result:
    """What is at *path*, if it is a socket.

    :raise UsageError: the path cannot name a file at all.
    :raise MissingError: there is nothing.
    :raise RefusedError: it is a symbolic link, or no socket.
    :raise KernelError: it cannot be looked at.
    """
    text = str(path)
    if (
        not text
        or "\0" in text
        or len(os.fsencode(text)) > _LONGEST_PATH
        or len(os.fsencode(path.name)) > _LONGEST_NAME
    ):
        raise UsageError(f"a monitor's path is too long ({len(text)} characters)")
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(
            f"there is no monitor at {text}",
            hint=f"start QEMU with -qmp unix:{text},server=on,wait=off, or name the VM with --pid",
        ) from error
    except OSError as error:
        hint = "run it as root, or as the user that QEMU runs as" if isinstance(error, PermissionError) else None
        raise KernelError("lstat", text, error.errno or 0, hint=hint) from error
    if stat.S_ISLNK(found.st_mode):
        raise RefusedError(f"{text} is a symbolic link", hint=f"name the socket itself: {path.resolve()}")
    if not stat.S_ISSOCK(found.st_mode):
        raise RefusedError(
            f"{text} is {_kind_of(found.st_mode)}, not a socket", hint="name the path that QEMU's -qmp was given"
        )
    return found


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFREG: "a regular file", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def connect(path: Path, *, budget_s: float = DEFAULT_BUDGET_S, root: HostRoot = _DEFAULT_ROOT) -> QmpMonitor:
    """The QMP monitor at a Unix socket, greeted and ready.

    :param budget_s: for connecting, for the greeting, and later for each command.
    :param root: whose ``/proc/net/unix`` tells of other clients.
    :raise BusyError: another client is connected.
    :raise PeerError: whatever the other side did wrong. Nothing is left open on any failure.
    """
    found = check_socket(path)
    others = clients_of(path, root)
    sock = _connected(path, Deadline.after("QMP connect", budget_s))
    try:
        pid = _check_peer(sock, path, found.st_uid)
    except BaseException:
        sock.close()
        raise
    try:
        return QmpMonitor(sock, f"the monitor at {path}", budget_s=budget_s, peer_pid=pid)
    except PeerTimeout as error:
        if error.deadline == "QMP greeting" and others:
            raise _busy(path) from error
        raise


def _busy(path: Path) -> BusyError:
    return BusyError(
        f"another client holds the monitor at {path}, and QEMU serves one at a time",
        hint="close that client, or give the VM a second -qmp socket",
    )


def clients_of(path: Path, root: HostRoot) -> int:
    """How many accepted connections the socket at *path* has, by ``/proc/net/unix``; 0 where that is unreadable."""
    table = read_text(root.at("proc/net/unix"), root=root).get("")
    rows = (_CONNECTED_WITH_INODE.fullmatch(line) for line in table.splitlines())
    return sum(1 for row in rows if row is not None and row["path"] in (str(path), str(path.absolute())))


def listening_sockets(root: HostRoot) -> dict[int, str]:
    """Inode number and path of every listening Unix stream socket of our network namespace."""
    table = read_text(root.at("proc/net/unix"), root=root).get("")
    rows = (_LISTENING.fullmatch(line) for line in table.splitlines())
    return {int(row["inode"]): row["path"] for row in rows if row is not None}


def _connected(path: Path, deadline: Deadline) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    # A full backlog is EAGAIN for a non-blocking socket: somebody else's connection waits there already.
    failure: list[OSError] = []

    def tried() -> bool:
        failure.clear()
        try:
            _connect_by_any_length(sock, path)
        except BlockingIOError as error:
            failure.append(error)
            return False
        except OSError as error:
            failure.append(error)
        return True

    try:
        tried_in_time = deadline.poll(tried)
    except BaseException:
        sock.close()
        raise
    if not failure:
        return sock
    sock.close()
    if not tried_in_time:
        raise _busy(path) from failure[0]
    raise _connect_error(path, failure[0]) from failure[0]


def _connect_by_any_length(sock: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= LONGEST_SUN_PATH:
        sock.connect(os.fsencode(path))
        return
    # Too long for an address: go by a descriptor of its directory.
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{directory}/".encode() + os.fsencode(path.name)
        if len(short) > LONGEST_SUN_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        sock.connect(short)
    finally:
        os.close(directory)


def _connect_error(path: Path, error: OSError) -> Exception:
    if error.errno == errno.ECONNREFUSED:
        return PeerGone(
            f"nobody listens at {path} any more",
            hint="the QEMU that made the socket has ended; `vfio-intx status` lists the VMs that run",
        )
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(
            f"the name of the socket {path.name[:40]!r}… is too long for an address",
            hint=f"a socket's file name may have some {LONGEST_SUN_PATH - 20} bytes",
        )
    hint = "run it as root" if error.errno in (errno.EACCES, errno.EPERM) else None
    if error.errno == errno.EPROTOTYPE:
        hint = "that is a datagram socket; name the path that QEMU's -qmp was given"
    return KernelError("connect", str(path), error.errno or 0, hint=hint)


def _check_peer(sock: socket.socket, path: Path, owner: int) -> int | None:
    """The pid that listens, None where it lives in a pid namespace that we cannot see into."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in (0, os.geteuid(), owner):
        raise RefusedError(
            f"user {uid} answers at {path}, which belongs to user {owner}",
            hint="ask whoever runs the VM for its own monitor socket",
        )
    return pid if pid > 0 else None


def proxmox_socket(vmid: str, root: HostRoot) -> Path:
    """The monitor socket that Proxmox gives to VM number *vmid*. :raise UsageError: if that is not a number."""
    return root.at(PROXMOX_SOCKETS, f"{parse_natural(vmid, 'a VMID', least=100, most=999_999_999)}.qmp")


def open_first(
    paths: tuple[Path, ...],
    whose: str,
    *,
    budget_s: float,
    root: HostRoot,
    is_another: Callable[[int], bool] = lambda pid: False,
) -> Monitor:
    """The first of some monitor sockets that serves us; a held one is passed over for the next.

    :param whose: the VM in words.
    :param is_another: whether the process of that pid is another VM, whose monitor is then left at once.
    :raise MissingError: if there are none. :raise WorldError: what went wrong with the last one.
    """
    if not paths:
        raise MissingError(
            f"{whose} has no QMP socket that its command line or its descriptors tell of",
            hint="start it with -qmp unix:PATH,server=on,wait=off; for a VM of libvirt use --libvirt",
        )

    def opened(path: Path) -> Monitor:
        monitor = connect(path, budget_s=budget_s, root=root)
        if monitor.peer_pid is not None and is_another(monitor.peer_pid):
            monitor.close()
            raise PeerGone(
                f"another VM, process {monitor.peer_pid}, answers at {path} now, not {whose}",
                hint="give each VM a -qmp socket of its own",
            )
        return monitor

    free = sorted(paths, key=lambda path: clients_of(path, root))
    for path in free[:-1]:
        try:
            return opened(path)
        except (BusyError, PeerTimeout, PeerGone, MissingError):
            continue
    return opened(free[-1])
