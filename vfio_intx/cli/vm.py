"""The options that name a VM, and the monitor they lead to; shared by every verb that talks to one."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_intx.errors import MissingError, UsageError
from vfio_intx.names import parse_natural

if TYPE_CHECKING:
    from vfio_intx.host.root import HostRoot
    from vfio_intx.qemu.monitor import Monitor
    from vfio_intx.wiring.verify import Witness

DEFAULT_TIMEOUT_S = 10.0
_LONGEST_TIMEOUT_S = 3600.0


def add_vm_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--qmp``, ``--pid``, ``--libvirt`` and ``--proxmox``, of which exactly one names the VM."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--qmp", metavar="PATH", help="the VM's QMP socket")
    group.add_argument("--pid", metavar="PID", help="the VM's QEMU process; its QMP socket is looked for")
    group.add_argument("--libvirt", metavar="DOMAIN", help="a domain of libvirt, through virsh")
    group.add_argument("--proxmox", metavar="VMID", help="a VM of Proxmox")


def add_timeout_argument(parser: argparse.ArgumentParser) -> None:
    """``--timeout``: seconds for each wait on QEMU or the guest."""
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=parse_seconds,
        default=DEFAULT_TIMEOUT_S,
        help=f"seconds for each wait on QEMU or the guest (default {DEFAULT_TIMEOUT_S:g})",
    )


def add_trace_argument(parser: argparse.ArgumentParser) -> None:
    """``--trace``: one more kind of evidence for a scheme."""
    parser.add_argument("--trace", action="store_true", help="ask the kernel's tracepoints too, as a third witness")


def witness_of(arguments: argparse.Namespace, root: HostRoot) -> Witness:
    """The witness that ``--trace`` asks for, or the one that sees nothing."""
    if arguments.trace:
        from vfio_intx.observe.witness import tracing

        return tracing(root)
    from vfio_intx.wiring.verify import no_witness

    return no_witness


def parse_seconds(text: str) -> float:
    """A positive number of seconds. :raise argparse.ArgumentTypeError: for anything else."""
    try:
        seconds = float(text) if text.isascii() else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_TIMEOUT_S:
        raise argparse.ArgumentTypeError(
            f"{text[:20]!r} is not a number of seconds above 0, at most {_LONGEST_TIMEOUT_S:g}"
        )
    return seconds


def treat_termination_as_interrupt() -> None:
    """Let SIGTERM, and the end of the terminal, end a changing verb as Ctrl-C does, so that what was begun is undone.

    One that is ignored (by ``nohup``) stays ignored. A shell that starts us in the background has us ignore Ctrl-C,
    which is no reason to ignore the others.
    """

    def interrupt(number: int, frame: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def names_vm(arguments: argparse.Namespace) -> bool:
    """Whether one of the options was given."""
    named = (arguments.qmp, arguments.pid, arguments.libvirt, arguments.proxmox)
    return any(name is not None for name in named)


@contextmanager
def open_vm(arguments: argparse.Namespace, root: HostRoot) -> Iterator[Monitor]:
    """The monitor of the VM that the options name, closed at the end.

    :raise UsageError: no option was given, or its value is malformed. :raise WorldError: the monitor cannot be had.
    """
    monitor = open_monitor(arguments, root)
    try:
        yield monitor
    finally:
        monitor.close()


def open_monitor(arguments: argparse.Namespace, root: HostRoot) -> Monitor:
    """The monitor of the VM that the options name; the caller closes it. See :func:`open_vm`."""
    from vfio_intx.qemu import transports
    from vfio_intx.qemu.libvirt import VirshMonitor, parse_domain
    from vfio_intx.qemu.process import find_process, find_processes, open_monitor_of

    budget_s: float = arguments.timeout
    if arguments.qmp is not None:
        if not arguments.qmp:
            raise UsageError("--qmp: the path is empty", hint="name the path that QEMU's -qmp was given")
        return transports.connect(Path(arguments.qmp), budget_s=budget_s, root=root)
    if arguments.pid is not None:
        process = find_process(root, parse_natural(arguments.pid, "a pid", least=1))
        return open_monitor_of(root, process, budget_s=budget_s)
    if arguments.libvirt is not None:
        domain = parse_domain(arguments.libvirt)
        owners = [one.pid for one in find_processes(root) if one.command_line.name == domain]
        return VirshMonitor(domain, budget_s=budget_s, peer_pid=owners[0] if len(owners) == 1 else None)
    if arguments.proxmox is not None:
        path = transports.proxmox_socket(arguments.proxmox, root)
        try:
            return transports.connect(path, budget_s=budget_s, root=root)
        except MissingError as error:
            vmid = arguments.proxmox
            hint = f"qm status {vmid}; qm start {vmid}"
            raise MissingError(f"VM {vmid} of Proxmox does not run here: {error}", hint=hint) from error
    raise UsageError("name the VM", hint="one of --qmp PATH, --pid PID, --libvirt DOMAIN, --proxmox VMID")
