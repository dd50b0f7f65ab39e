"""From what the user names to the line to trace: threads of the process, the host's IRQ, the GSI where it is learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vfio_intx.abi.tracepoints import Event
from vfio_intx.errors import KernelError, MissingError
from vfio_intx.host.irq import read_interrupts, vfio_action
from vfio_intx.host.pci import read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, Gsi, HostIrq
from vfio_intx.observe.events import Kind, Target
from vfio_intx.qemu.process import find_processes, holders_among, read_descriptors

_MESSAGE = -1
_OF_PINS = (Kind.SET_IRQ, Kind.IOAPIC, Kind.PIC, Kind.ACK)

#: So many handled interrupts must point at one GSI before it is taken as learnt, and so large a part of all.
LEARN_FROM, LEARN_SHARE = 4, 0.75


def threads_of(root: HostRoot, pid: int) -> tuple[int, ...]:
    """Every thread of a process. :raise MissingError: it does not live. :raise KernelError: we may not look."""
    try:
        return tuple(sorted(int(task.name) for task in root.at("proc", str(pid), "task").iterdir()))
    except FileNotFoundError as error:
        raise MissingError(f"there is no process {pid}", hint="vfio-intx status lists the VMs of this host") from error
    except OSError as error:
        raise KernelError("open", f"/proc/{pid}/task", error.errno or 0) from error


def need_kvm(root: HostRoot, pid: int | None) -> None:
    """Nothing, where the process has a VM of KVM, or where that cannot be seen.

    :raise MissingError: it has none (QEMU emulates the CPU, or it is no VM at all), so no event would ever come.
    """
    held = read_descriptors(root, pid).value if pid is not None else None
    if held is not None and not held.kvm_vm:
        raise MissingError(f"process {pid} has no VM of KVM", hint="vfio-intx status lists the VMs of this host")


def irq_of(root: HostRoot, bdf: Bdf) -> tuple[HostIrq, str]:
    """The host's IRQ on which vfio handles *bdf*'s INTx, and the handler's name there.

    :raise MissingError: vfio does not: the device is not in use by a VM, or uses MSI.
    """
    action = vfio_action(bdf)
    for irq, line in read_interrupts(root).get({}).items():
        if action in line.actions:
            return irq, action
    raise MissingError(
        f"no interrupt line of this host is handled for {bdf} by vfio",
        hint=f"a VM must have the device open with INTx enabled: grep {bdf} /proc/interrupts; vfio-intx status",
    )


def resolve(root: HostRoot, *, pid: int | None, gsi: Gsi | None, bdf: Bdf | None) -> tuple[Target, int | None]:
    """The target of what was named, and the VM's process, which is found for a *bdf* where none was named.

    :raise MissingError: no such process, no line of *bdf*, or nobody seen to hold it.
    """
    irq = action = None
    if bdf is not None:
        irq, action = irq_of(root, bdf)
        pid = pid if pid is not None else _holder(root, bdf)
    threads = threads_of(root, pid) if pid is not None else ()
    return Target(gsi, threads, irq, action), pid


def _holder(root: HostRoot, bdf: Bdf) -> int:
    """The one QEMU that has *bdf* open."""
    function = read_function(root, bdf)
    found = () if function is None else holders_among(root, find_processes(root), function)
    if len(found) == 1:
        return found[0].pid
    raise MissingError(f"the VM that holds {bdf} cannot be told", hint="name its process with --pid")


def learn(target: Target, events: Iterable[Event], *, least: int = LEARN_FROM) -> Target | None:
    """The target with the GSI that the host's handler leads to; None while it cannot be told. *events* are in order.

    The first level raised between one run of the handler and the next is taken as its consequence; other lines of the
    same VM are outvoted. A message with the level bit, sent from inside the handler, means ``split``: there is no GSI.
    """
    votes: Counter[int] = Counter()
    asked = inside = False
    for _, kind, _, fields in events:
        if kind == Kind.HOST_ENTRY:
            asked = inside = True
        elif kind == Kind.HOST_EXIT:
            inside = False
        elif (kind == Kind.SET_IRQ and fields[2] and asked) or (kind == Kind.MSI and inside and asked):
            votes[fields[1] if kind == Kind.SET_IRQ else _MESSAGE] += 1
            asked = False
    if not votes:
        return None
    gsi, count = votes.most_common(1)[0]
    if count < least or count < LEARN_SHARE * votes.total():
        return None
    return replace(target, by_message=True) if gsi == _MESSAGE else replace(target, gsi=Gsi(gsi))


def only_of(target: Target, events: Sequence[Event]) -> list[Event]:
    """The events without those of other lines, which were recorded while *target* was still to be learnt."""
    if target.by_message:
        return [event for event in events if event[1] not in _OF_PINS]
    gsi = target.gsi
    return list(events) if gsi is None else [event for event in events if not _elsewhere(gsi, event)]


def _elsewhere(gsi: Gsi, event: Event) -> bool:
    kind, fields = event[1], event[3]
    if kind == Kind.SET_IRQ:
        return fields[1] != gsi
    if kind in (Kind.IOAPIC, Kind.ACK):
        return fields[2] != gsi
    return kind == Kind.PIC and (gsi >= 16 or fields[1] != gsi & 7)
