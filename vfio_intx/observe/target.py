"""From what the user names to the line to trace: threads of the process, the host's IRQ, the GSI where it is learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vfio_intx.abi.tracepoints import Event
from vfio_intx.errors import KernelError, MissingError
from vfio_intx.host.irq import read_interrupts, vfio_action
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, Gsi, HostIrq
from vfio_intx.observe.events import Kind, Target

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


def resolve(root: HostRoot, *, pid: int | None, gsi: Gsi | None, bdf: Bdf | None, irq: HostIrq | None) -> Target:
    """The target of what was named. :raise MissingError: no such process, or no line of *bdf*."""
    threads = threads_of(root, pid) if pid is not None else ()
    action = None
    if bdf is not None:
        irq, action = irq_of(root, bdf)
    return Target(gsi, threads, irq, action)


def learn_gsi(events: Iterable[Event]) -> Gsi | None:
    """The GSI that the host's handler leads to; None while it cannot be told. *events* are sorted by time.

    The first level raised between one run of the handler and the next is taken as its consequence; other lines of the
    same VM are outvoted.
    """
    votes: Counter[int] = Counter()
    asked = False
    for _, kind, _, _, first, second, _ in events:
        if kind == Kind.HOST_ENTRY:
            asked = True
        elif kind == Kind.SET_IRQ and second and asked:
            votes[first] += 1
            asked = False
    if not votes:
        return None
    gsi, count = votes.most_common(1)[0]
    return Gsi(gsi) if count >= LEARN_FROM and count >= LEARN_SHARE * votes.total() else None


def with_gsi(target: Target, gsi: Gsi) -> Target:
    """The target, now that its GSI is known."""
    return replace(target, gsi=gsi)


def only_of(gsi: Gsi, events: Sequence[Event]) -> list[Event]:
    """The events without those of other GSIs and pins, which were recorded while the GSI was still unknown."""
    return [event for event in events if not _elsewhere(gsi, event)]


def _elsewhere(gsi: Gsi, event: Event) -> bool:
    kind = event[1]
    if kind == Kind.SET_IRQ:
        return event[4] != gsi
    if kind in (Kind.IOAPIC, Kind.ACK):
        return event[5] != gsi
    return kind == Kind.PIC and (gsi >= 16 or event[4] != gsi & 7)
