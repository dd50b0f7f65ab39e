"""Which scheme a line really runs: samples of two witnesses, and the evidence that follows from them.

The witnesses are QEMU's configuration, and the counters: an interrupt that the host counted (``/proc/interrupts``) and
that QEMU did not raise itself (``info irq``) went through KVM. Trace events and descriptors are further kinds, which
others hand in as :class:`~vfio_intx.chain.evidence.Evidence`.

The windows are nested on purpose: QEMU is asked first and last, the host in between. So each interrupt that the host
counted in its window and that QEMU raised is in QEMU's window too, and "QEMU raised none" is not a race.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import msgspec

from vfio_intx.chain.evidence import Evidence, Kind
from vfio_intx.chain.scheme import Scheme
from vfio_intx.deadline import Deadline
from vfio_intx.host.irq import IrqLine, read_interrupts, vfio_device
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, Gsi, HostIrq
from vfio_intx.qemu import replies
from vfio_intx.qemu.features import read_counts
from vfio_intx.qemu.irqchip import Controllers, IrqchipKind, IrqCounts
from vfio_intx.qemu.monitor import Monitor, ask

#: Watches one line (of the VM with that pid, where known) while its block runs; the evidence is in the sequence then.
Witness = Callable[[Bdf, int | None], AbstractContextManager[Sequence[Evidence]]]


@contextmanager
def no_witness(bdf: Bdf, pid: int | None) -> Iterator[Sequence[Evidence]]:
    """The witness that sees nothing: configuration and counters have to do."""
    yield ()


class HostLine(msgspec.Struct, frozen=True):
    """The host's side of a line: vfio's handler in ``/proc/interrupts``.

    :ivar count: interrupts of the whole line since boot, those of its other users included.
    :ivar others: who else handles the line.
    """

    irq: HostIrq
    count: int
    others: tuple[str, ...]


class Sample(msgspec.Struct, frozen=True):
    """Both witnesses at one moment. ``host`` is None while vfio has no INTx handler for the device."""

    host: HostLine | None
    counts: IrqCounts
    at: float


class Window(msgspec.Struct, frozen=True):
    """How many interrupts each witness saw between two samples; ``qemu`` is None where the GSI's count is not known."""

    seconds: float
    host: int
    qemu: int | None


class HostLook(msgspec.Struct, frozen=True):
    """Every line that vfio handles at one moment, for the samples of several devices, whichever VM has them."""

    lines: Mapping[Bdf, HostLine]
    at: float

    def sample(self, bdf: Bdf, counts: IrqCounts) -> Sample:
        """The sample of one device. *counts* are older where it opens a window, younger where it closes one."""
        return Sample(self.lines.get(bdf), counts, self.at)


def look(root: HostRoot) -> HostLook:
    """The host's side of all samples at this moment."""
    return HostLook(read_host_lines(root), time.monotonic())


def read_host_line(root: HostRoot, bdf: Bdf) -> HostLine | None:
    """The line on which vfio handles the INTx of *bdf*, None where it handles none."""
    return read_host_lines(root).get(bdf)


def read_host_lines(root: HostRoot) -> Mapping[Bdf, HostLine]:
    """Every line on which vfio handles an INTx, by device, from one reading of ``/proc/interrupts``."""
    lines: Iterable[IrqLine] = (read_interrupts(root).value or {}).values()
    return {
        bdf: HostLine(line.irq, line.count, tuple(name for name in line.actions if name != action))
        for line in lines
        for action in line.actions
        if (bdf := vfio_device(action)) is not None
    }


def open_sample(monitor: Monitor, root: HostRoot, bdf: Bdf) -> Sample:
    """The first sample of a window: QEMU, then the host."""
    counts = read_counts(monitor)
    return look(root).sample(bdf, counts)


def close_sample(monitor: Monitor, root: HostRoot, bdf: Bdf) -> Sample:
    """The last sample of a window: the host, then QEMU.

    One more question goes to QEMU before its counts are read. Its main loop handles everything that was ready when it
    took that question, the interrupt that the host has just counted included.
    """
    seen = look(root)
    settle(monitor)
    return seen.sample(bdf, read_counts(monitor))


def settle(monitor: Monitor) -> None:
    """Let QEMU handle everything that is ready now, before the question that comes next."""
    ask(monitor, "query-status", replies.RunState)


def window(first: Sample, last: Sample, gsis: tuple[Gsi, ...]) -> Window:
    """What happened between two samples; a host line that came or went within it counts as silent.

    :param gsis: those that the line may be on. With several, QEMU's count is known only if it raised none of them.
    """
    same = first.host is not None and last.host is not None and first.host.irq == last.host.irq
    host = last.host.count - first.host.count if same and first.host and last.host else 0
    raised = [last.counts.of(gsi) - first.counts.of(gsi) for gsi in gsis]
    qemu = raised[0] if len(raised) == 1 else 0 if raised and not any(raised) else None
    return Window(last.at - first.at, max(0, host), qemu)


def configured_scheme(no_kvm_intx: bool | None, irqchip: IrqchipKind) -> Scheme:
    """The scheme that QEMU will use if all goes well (``vfio_intx_enable_kvm`` in hw/vfio/pci.c)."""
    if no_kvm_intx or irqchip is IrqchipKind.USERSPACE:
        return Scheme.TRAP
    return Scheme.SPLIT if irqchip is IrqchipKind.SPLIT else Scheme.IRQFD


def configuration_evidence(no_kvm_intx: bool | None, irqchip: IrqchipKind) -> Evidence:
    """What QEMU's options say. They show the intent only: QEMU falls back with no more than a warning in its log."""
    said = "unknown" if no_kvm_intx is None else "on" if no_kvm_intx else "off"
    text = f"x-no-kvm-intx is {said}, interrupt controllers: {irqchip.value}"
    if no_kvm_intx is None and irqchip is not IrqchipKind.USERSPACE:
        return Evidence(Kind.CONFIGURATION, text, None)
    return Evidence(Kind.CONFIGURATION, text, configured_scheme(no_kvm_intx, irqchip))


def counters_evidence(
    seen: Window,
    irqchip: IrqchipKind,
    gsis: tuple[Gsi, ...],
    *,
    host_others: tuple[str, ...],
    guest_others: tuple[str, ...],
) -> Evidence:
    """What the counters of a window say.

    :param gsis: those that the line may be on.
    :param host_others: other handlers on the host's line: its count is then not this device's alone.
    :param guest_others: other functions on the guest's line: QEMU's count may then be theirs.
    """
    span = f"within {seen.seconds:.1f} s"
    if seen.host == 0:
        return Evidence(Kind.COUNTERS, f"the host counted no interrupt {span}", None)
    where = " or ".join(str(gsi) for gsi in gsis)
    if not gsis:
        return Evidence(Kind.COUNTERS, f"the host counted {seen.host} {span}, but the guest's GSI is unknown", None)
    if seen.qemu is None:
        text = f"the host counted {seen.host} {span}; of GSI {where}, one of them the line's, QEMU raised some"
        return Evidence(Kind.COUNTERS, text, None)
    text = f"the host counted {seen.host} {span}, QEMU itself raised {seen.qemu} on GSI {where}"
    if seen.qemu == 0 and host_others:
        return Evidence(Kind.COUNTERS, f"{text}; the host's line is shared with {', '.join(host_others)}", None)
    if seen.qemu == 0 and irqchip is not IrqchipKind.USERSPACE:
        return Evidence(Kind.COUNTERS, text, Scheme.SPLIT if irqchip is IrqchipKind.SPLIT else Scheme.IRQFD)
    if seen.qemu and guest_others:
        return Evidence(Kind.COUNTERS, f"{text}; that GSI is shared with {', '.join(guest_others)}", None)
    if seen.qemu and (seen.qemu >= seen.host or host_others):
        return Evidence(Kind.COUNTERS, text, Scheme.TRAP)
    return Evidence(Kind.COUNTERS, f"{text}, which fits no scheme", None)


def listening_gsis(candidates: Iterable[int], controllers: Controllers) -> tuple[Gsi, ...]:
    """Those of some candidates that the guest listens to as level interrupts, in their order."""
    return tuple(Gsi(gsi) for gsi in candidates if controllers.listens(gsi))


def watch(monitor: Monitor, root: HostRoot, bdf: Bdf, first: Sample, deadline: Deadline) -> Sample:
    """Wait until the host has counted an interrupt since *first*, or the deadline passes; the closing sample."""

    def counted() -> bool:
        line = read_host_line(root, bdf)
        return line is not None and first.host is not None and line.count > first.host.count

    deadline.poll(counted)
    return close_sample(monitor, root, bdf)
