"""What a run of spans says in sum: times by stage, how often userspace had to run, and for which scheme it speaks.

**Wake-ups of userspace per interrupt** are counted from the events of each interrupt, never from its total of wake-ups,
which other work of QEMU would spoil:

- 1 if a thread of the VM's process injected it (``kvm_set_irq`` level 1 with source 0 in a thread of the process), or
  was woken from inside the host's handler (``sched_waking`` between ``irq_handler_entry`` and ``irq_handler_exit`` on
  the same CPU) before the interrupt was injected: its main loop had to run;
- 1 if a thread of the process lowered it again (level 0 with source 0): a vCPU left the kernel for it;
- 1 for each ``KVM_EXIT_IOAPIC_EOI``: the EOI left the kernel.

``irqfd`` has none of these. A worker thread of the kernel is not userspace and is not counted.

**A stage's time** is the time from the milestone before it, in the order of time, to the moment it was reached.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vfio_intx.chain.evidence import Evidence
from vfio_intx.chain.evidence import Kind as EvidenceKind
from vfio_intx.chain.scheme import Scheme
from vfio_intx.chain.stage import Stage
from vfio_intx.observe.histogram import Latencies
from vfio_intx.observe.span import CHAIN, SOURCE_MSI, SOURCE_RESAMPLE, Span

_IRQFD, _SPLIT, _TRAP = Scheme.IRQFD.value, Scheme.SPLIT.value, Scheme.TRAP.value
_ACK_EVENTFD, _EDGE = Scheme.ACK_EVENTFD.value, Scheme.EDGE.value

#: So many of the slowest interrupts are kept whole.
SLOWEST = 10


@dataclass(frozen=True, slots=True)
class StageTimes:
    """One stage in the sum: its times in microseconds and its share of the whole (0 to 1)."""

    stage: Stage
    us: Mapping[str, float]
    share: float
    count: int


class Summary:
    """Adds up spans in bounded space, however long the run."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.by_stage = [Latencies() for _ in CHAIN]
        self.whole = Latencies()
        self.to_ack = Latencies()
        self.schemes: Counter[str] = Counter()
        self.userspace_runs = 0
        self._slowest: list[tuple[int, int, Span]] = []

    def add(self, spans: Sequence[Span]) -> None:
        """Count finished spans: gathered by stage first, then counted a list at a time, which is far quicker."""
        by_stage: list[list[int]] = [[] for _ in CHAIN]
        add_to = [durations.append for durations in by_stage]
        wholes, acks = [], []
        for span in spans:
            moments = span.moments()
            before = start = moments[0] >> 4
            for moment in moments[1:]:
                now = moment >> 4
                add_to[moment & 15](now - before)
                before = now
            wholes.append(before - start)
            acks.append(span.ack - start)
        for latencies, durations in zip(self.by_stage, by_stage, strict=True):
            latencies.extend(durations)
        self.whole.extend(wholes)
        self.to_ack.extend(acks)
        self.interrupts += len(spans)
        # A span of the kernel alone cannot have any: that is told without asking it.
        asked = [span for span in spans if span.by_process or span.exits or span.handler is not None]
        self.userspace_runs += sum([span.userspace_runs for span in asked])
        self.schemes.update(Counter([scheme_name(span) for span in spans]))
        self._keep_slowest(spans, wholes)

    def _keep_slowest(self, spans: Sequence[Span], wholes: Sequence[int]) -> None:
        least = self._slowest[0][0] if len(self._slowest) == SLOWEST else -1
        for whole, span in zip(wholes, spans, strict=True):
            if whole > least:
                heapq.heappush(self._slowest, (whole, -span.number, span))
                if len(self._slowest) > SLOWEST:
                    heapq.heappop(self._slowest)
                    least = self._slowest[0][0]

    @property
    def wakeups_per_interrupt(self) -> float | None:
        """Userspace wake-ups per interrupt (see the module); None before the first interrupt."""
        return round(self.userspace_runs / self.interrupts, 3) if self.interrupts else None

    def slowest(self) -> list[Span]:
        """The slowest interrupts, slowest first."""
        return [span for _, _, span in sorted(self._slowest, key=lambda item: (-item[0], -item[1]))]

    def stages(self) -> list[StageTimes]:
        """The stages that were seen, in the order of the chain."""
        whole = self.whole.total or 1
        return [
            StageTimes(stage, times.microseconds(), round(times.total / whole, 4), times.count)
            for stage, times in zip(CHAIN, self.by_stage, strict=True)
            if times.count
        ]

    def evidence(self) -> Evidence | None:
        """What the injections say of the scheme; None before the first. It decides nothing where they disagree."""
        if not self.interrupts:
            return None
        if len(self.schemes) > 1:
            parts = ", ".join(f"{count} as {name or 'unknown'}" for name, count in self.schemes.items())
            return Evidence(EvidenceKind.TRACE, f"kernel trace: of {self.interrupts} injections {parts}", None)
        name = next(iter(self.schemes))
        scheme = Scheme(name) if name else None
        return Evidence(EvidenceKind.TRACE, f"kernel trace: {self.interrupts} injections, {_WORDS[scheme]}", scheme)


_WORDS: Mapping[Scheme | None, str] = {
    Scheme.IRQFD: "each by the resample irqfd (kvm_set_irq source 1) and lowered by KVM at the acknowledge",
    Scheme.ACK_EVENTFD: "each by a thread of the VM's process (source 0), which lowered it after the acknowledge",
    Scheme.TRAP: "each by a thread of the VM's process (source 0), which lowered it after a trapped access",
    Scheme.SPLIT: "each as a message with the level bit, its EOI left the kernel (KVM_EXIT_IOAPIC_EOI)",
    Scheme.EDGE: "each by a plain irqfd (source 0 from a kernel thread), lowered at once",
    None: "of a kind that fits no scheme",
}


def scheme_of(span: Span) -> Scheme | None:
    """The scheme that one finished span shows; None where it fits none."""
    name = scheme_name(span)
    return Scheme(name) if name else None


def scheme_name(span: Span) -> str:
    """The same by name, empty where it fits none: a string is counted many times quicker than a member of an enum."""
    if span.source == SOURCE_RESAMPLE:
        return _IRQFD if span.lowered_by == SOURCE_RESAMPLE else ""
    if span.source == SOURCE_MSI:
        return _SPLIT if span.exits else ""
    if span.by_process:
        # Both are raised by QEMU's main loop. That lowers it too when it hears of an EOI (of the one before as well: a
        # repeated run has one of its own); a trapped access is served in the vCPU's thread. The order tells less.
        return _ACK_EVENTFD if span.lowered_in == span.pid else _TRAP
    return _EDGE if span.drop < span.ack else ""
