"""Which tracepoints tell of one line, what to take from each, and how the kernel shall filter them. Pure.

Filters keep everything else out of the buffer, so that a busy host costs us nothing. They are only as narrow as they
may be without hiding what has to be counted: the acknowledge of a pin is taken from every VM, because another VM
that uses the same GSI is seen by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from vfio_intx.names import Gsi, HostIrq

#: TRACE_FLAG_HARDIRQ of include/linux/trace_events.h, in common_flags.
_IN_HARD_IRQ = 8
_EXIT_IOAPIC_EOI, _EXIT_MMIO = 26, 6
_MSI_LEVEL = 1 << 15
_LONGEST_LIST = 3000
#: Bits of an IOAPIC redirection entry.
_ENTRY_LEVEL, _ENTRY_MASKED = 1 << 15, 1 << 16


class Kind(IntEnum):
    """An event's kind: the second item of an :data:`~vfio_intx.abi.tracepoints.Event`."""

    HOST_ENTRY = 0
    HOST_EXIT = 1
    WAKING = 2
    QUEUE_WORK = 3
    SET_IRQ = 4
    IOAPIC = 5
    PIC = 6
    MSI = 7
    ACCEPT = 8
    INJECT_VECTOR = 9
    EOI = 10
    ACK = 11
    USERSPACE_EXIT = 12


#: Not of the kernel: the reader's note that events are missing here. Fields: how many (-1: unknown), damaged page.
LOST = -1
#: What happens in and around the host's handler, losses included: events that name no GSI.
HOST_SIDE = frozenset((Kind.HOST_ENTRY, Kind.HOST_EXIT, Kind.WAKING, Kind.QUEUE_WORK, LOST))


@dataclass(frozen=True, slots=True)
class Tracepoint:
    """A tracepoint and the fields that an event of its kind carries.

    :ivar optional: a kernel without it can still be traced; what it would have told is then unknown.
    """

    kind: Kind
    group: str
    name: str
    fields: tuple[str, ...]
    optional: bool = False

    @property
    def path(self) -> str:
        """``kvm/kvm_set_irq``: where it lies below ``events``."""
        return f"{self.group}/{self.name}"


TRACEPOINTS = {
    point.kind: point
    for point in (
        Tracepoint(Kind.HOST_ENTRY, "irq", "irq_handler_entry", ("irq",)),
        Tracepoint(Kind.HOST_EXIT, "irq", "irq_handler_exit", ("irq", "ret")),
        Tracepoint(Kind.WAKING, "sched", "sched_waking", ("pid",)),
        Tracepoint(Kind.QUEUE_WORK, "workqueue", "workqueue_queue_work", (), optional=True),
        Tracepoint(Kind.SET_IRQ, "kvm", "kvm_set_irq", ("gsi", "level", "irq_source_id")),
        Tracepoint(Kind.IOAPIC, "kvm", "kvm_ioapic_set_irq", ("e", "pin", "coalesced"), optional=True),
        Tracepoint(Kind.PIC, "kvm", "kvm_pic_set_irq", ("pin", "imr", "coalesced"), optional=True),
        Tracepoint(Kind.MSI, "kvm", "kvm_msi_set_irq", ("address", "data"), optional=True),
        Tracepoint(Kind.ACCEPT, "kvm", "kvm_apic_accept_irq", ("apicid", "vec")),
        Tracepoint(Kind.INJECT_VECTOR, "kvm", "kvm_inj_virq", ("vector",)),
        Tracepoint(Kind.EOI, "kvm", "kvm_eoi", ("apicid", "vector")),
        Tracepoint(Kind.ACK, "kvm", "kvm_ack_irq", ("irqchip", "pin")),
        Tracepoint(Kind.USERSPACE_EXIT, "kvm", "kvm_userspace_exit", ("reason",)),
    )
}


@dataclass(frozen=True, slots=True)
class Target:
    """The line to trace: as much of it as is known.

    :ivar gsi: the guest's GSI; None while it is still to be learnt from the events.
    :ivar threads: every thread of the VM's process; empty for "whichever VM".
    :ivar irq: the host's IRQ; None for a VM whose interrupts do not come from a device (the micro VM).
    :ivar action: the name of the handler on that IRQ, which tells it from its neighbours on a shared line.
    :ivar by_message: it was learnt that the line is delivered by messages (``split``), which name no GSI.
    """

    gsi: Gsi | None
    threads: tuple[int, ...] = ()
    irq: HostIrq | None = None
    action: str | None = None
    by_message: bool = False


@dataclass(frozen=True, slots=True)
class Enable:
    """One tracepoint to switch on, with the filter to set first (None: unfiltered)."""

    point: Tracepoint
    filter: str | None


def _any_of(field: str, numbers: Sequence[int]) -> str:
    listed = "(" + " || ".join(f"{field} == {number}" for number in numbers) + ")"
    if len(listed) <= _LONGEST_LIST:
        return listed
    # The kernel takes no filter of a page or more. A range lets some strangers in; the joiner knows them.
    return f"({field} >= {min(numbers)} && {field} <= {max(numbers)})"


def _both(*conditions: str | None) -> str | None:
    there = [condition for condition in conditions if condition]
    return " && ".join(there) or None


def plan(target: Target) -> list[Enable]:
    """The tracepoints of *target* with their filters, in the order to switch them on (the last stage first).

    The first stage goes on last: an interrupt in flight at the start then lacks its beginning, which is recognised,
    rather than its end, which would look like a lost acknowledge.
    """
    ours = _any_of("common_pid", target.threads) if target.threads else None
    in_handler = f"common_flags & {_IN_HARD_IRQ}"
    pin = None if target.gsi is None else f"pin == {_pin(target.gsi)}"
    # Delivered as it should be, the IOAPIC's own event tells nothing that the LAPIC's has not told.
    remarkable = f"(e & {_ENTRY_MASKED} || !(e & {_ENTRY_LEVEL}) || coalesced == 1)"
    filters: list[tuple[Kind, str | None]] = [
        (Kind.USERSPACE_EXIT, _both(ours, _any_of("reason", (_EXIT_IOAPIC_EOI, _EXIT_MMIO)))),
        (Kind.EOI, _both("vector >= 0", ours)),
        (Kind.INJECT_VECTOR, ours),
        (Kind.ACCEPT, "tm != 0"),
        (Kind.MSI, _both(f"data & {_MSI_LEVEL}", f"({ours} || {in_handler})" if ours else None)),
    ]
    if not target.by_message:
        filters.insert(1, (Kind.ACK, pin))
        if target.gsi is None or target.gsi < 16:
            chip = None if target.gsi is None else f"chip == {target.gsi >> 3} && pin == {target.gsi & 7}"
            filters.append((Kind.PIC, chip))
        gsi = None if target.gsi is None else f"gsi == {target.gsi}"
        filters += [(Kind.IOAPIC, _both(pin, remarkable)), (Kind.SET_IRQ, gsi)]
    if target.irq is not None:
        filters += _host_side(target)
    return [Enable(TRACEPOINTS[kind], condition) for kind, condition in filters]


def _host_side(target: Target) -> list[tuple[Kind, str | None]]:
    irq = f"irq == {target.irq}"
    name = f'name == "{target.action}"' if target.action else None
    in_handler = f"common_flags & {_IN_HARD_IRQ}"
    woken: list[tuple[Kind, str | None]] = [(Kind.QUEUE_WORK, in_handler)]
    if target.threads:
        woken.append((Kind.WAKING, _both(in_handler, _any_of("pid", target.threads))))
    return [*woken, (Kind.HOST_EXIT, irq), (Kind.HOST_ENTRY, _both(irq, name))]


def _pin(gsi: Gsi) -> int:
    # KVM's default routing: GSI n is IOAPIC pin n. QEMU moves GSI 0 (the timer) to pin 2; no INTx lies there.
    return gsi
