"""What a run of spans says in sum: times by stage, how often userspace had to run, and for which scheme it speaks.

**Wake-ups of userspace per interrupt** are counted from the events of each interrupt, never from its total of wake-ups,
which other work of QEMU would spoil:

- 1 if a thread of the VM's process injected it (``kvm_set_irq`` level 1 with source 0 in a thread of the process), or
  was woken from inside the host's handler (``sched_waking`` between ``irq_handler_entry`` and ``irq_handler_exit`` on
  the same CPU): its main loop had to run;
- 1 if a thread of the process lowered it again (level 0 with source 0): a vCPU left the kernel for it;
- 1 for each ``KVM_EXIT_IOAPIC_EOI``: the EOI left the kernel.

``irqfd`` has none of these. A worker thread of the kernel is not userspace and is not counted.

**A stage's time** is the time from the milestone before it, in the order of time, to the moment it was reached.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vfio_intx.chain.evidence import Evidence
from vfio_intx.chain.evidence import Kind as EvidenceKind
from vfio_intx.chain.scheme import Scheme
from vfio_intx.chain.stage import Stage
from vfio_intx.observe.histogram import Latencies
from vfio_intx.observe.span import SOURCE_MSI, SOURCE_RESAMPLE, Span

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
        self.by_stage: dict[Stage, Latencies] = {}
        self.whole = Latencies()
        self.to_ack = Latencies()
        self.schemes: Counter[Scheme | None] = Counter()
        self.userspace_runs = 0
        self.first = 0
        self.last = 0
        self.vectors: Counter[int] = Counter()
        self._slowest: list[tuple[int, int, Span]] = []

    def add(self, spans: Iterable[Span]) -> None:
        """Count finished spans."""
        for span in spans:
            self._add(span)

    def _add(self, span: Span) -> None:
        milestones = span.milestones()
        before = start = milestones[0][1]
        by_stage = self.by_stage
        for stage, moment in milestones[1:]:
            latencies = by_stage.get(stage)
            if latencies is None:
                latencies = by_stage[stage] = Latencies()
            latencies.add(moment - before)
            before = moment
        self.interrupts += 1
        whole = before - start
        self.whole.add(whole)
        self.to_ack.add(span.ack - start)
        self.schemes[scheme_of(span)] += 1
        self.userspace_runs += span.userspace_runs
        self.vectors[span.vector] += 1
        self.first = self.first or start
        self.last = max(self.last, before)
        if len(self._slowest) < SLOWEST:
            heapq.heappush(self._slowest, (whole, -span.number, span))
        elif whole > self._slowest[0][0]:
            heapq.heapreplace(self._slowest, (whole, -span.number, span))

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
            for stage in Stage
            if (times := self.by_stage.get(stage)) is not None
        ]

    def evidence(self) -> Evidence | None:
        """What the injections say of the scheme; None before the first. It decides nothing where they disagree."""
        if not self.interrupts:
            return None
        if len(self.schemes) > 1:
            parts = ", ".join(
                f"{count} as {scheme.value if scheme else 'unknown'}" for scheme, count in self.schemes.items()
            )
            return Evidence(EvidenceKind.TRACE, f"kernel trace: of {self.interrupts} injections {parts}", None)
        scheme = next(iter(self.schemes))
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
    if span.source == SOURCE_MSI:
        return Scheme.SPLIT if span.exits else None
    if span.source == SOURCE_RESAMPLE:
        return Scheme.IRQFD if span.lowered_by == SOURCE_RESAMPLE else None
    if span.by_process:
        return Scheme.TRAP if span.handle or span.drop < span.ack else Scheme.ACK_EVENTFD
    return Scheme.EDGE if span.drop < span.ack else None
