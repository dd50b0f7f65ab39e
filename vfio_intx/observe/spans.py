"""Events to spans: one span for each interrupt that was injected, and a count of all that is not so simple.

:class:`Joiner` is a pure state machine. It is fed the events of one line in the order of time and gives out a
:class:`Span` when an interrupt is over: the guest has acknowledged it and its level was dropped. What tells the schemes
apart is in the events themselves:

=============  ========================================  =====================================  ======================
scheme         raised by                                 lowered by                             over when
=============  ========================================  =====================================  ======================
irqfd          ``kvm_set_irq`` source 1, a kworker       source 1, at the acknowledge           acknowledged, lowered
ack-eventfd    source 0, a thread of the VM's process    source 0, the same process             acknowledged, lowered
trap           source 0, a thread of the VM's process    source 0, a vCPU after a trapped exit  acknowledged, lowered
split          ``kvm_msi_set_irq`` with the level bit    nobody: it is a message                KVM_EXIT_IOAPIC_EOI
edge           source 0, a kworker                       source 0, the same kworker, at once    acknowledged, lowered
=============  ========================================  =====================================  ======================

In ``trap`` the level is often lowered before the guest's EOI, and the next interrupt may be raised before the EOI of
the last: so more than one span can be open, and each keeps its milestones in whatever order they came.

Nothing is smoothed away: what cannot be made into a whole span is an anomaly, with its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vfio_intx.abi.tracepoints import Event
from vfio_intx.observe.events import LOST, Kind, Target
from vfio_intx.observe.span import (
    SOURCE_MSI,
    SOURCE_RESAMPLE,
    SOURCE_USERSPACE,
    Anomaly,
    Handler,
    Oddity,
    Span,
)

_ENTRY_MASKED = 1 << 16
_EXIT_MMIO, _EXIT_IOAPIC_EOI = 6, 26
Fields = tuple[int, ...]
#: So many interrupts may wait for an acknowledge at once: where KVM hears of none (edge) there is no end of them.
_MOST_OPEN = 32
#: Anomalies kept with their time, of each kind; the rest is only counted.
KEPT_OF_A_KIND = 100


class Joiner:
    """Joins the events of one line. Feed it events sorted by time; take the finished spans from :attr:`done`.

    :ivar done: finished spans, in the order they finished; the caller empties it.
    :ivar counts: every oddity ever seen.
    :ivar anomalies: the first hundred of each, with their times.
    :ivar injected: levels raised and messages sent, begun spans; ``handled``: runs of the host's handler that took it.
    :ivar restated: raises of a level that the same thread of userspace had raised already: no event of their own.
    """

    def __init__(self, target: Target) -> None:
        self._threads = frozenset(target.threads)
        self._has_host = target.irq is not None
        self.done: list[Span] = []
        self.counts: Counter[Oddity] = Counter()
        self.anomalies: list[Anomaly] = []
        self.injected = 0
        self.handled = 0
        self.restated = 0
        self._open: list[Span] = []
        self._handler: Handler | None = None
        self._running: Handler | None = None
        self._foreign_vcpu = 0
        self._synced = False
        self._is_cut = False
        self._message_vector: int | None = None
        self._trapped: dict[int, int] = {}
        self._last = 0
        self._act = {
            Kind.SET_IRQ: self._set_irq,
            Kind.IOAPIC: self._ioapic,
            Kind.PIC: self._pic,
            Kind.MSI: self._message,
            Kind.ACCEPT: self._accept,
            Kind.INJECT_VECTOR: self._inject_vector,
            Kind.EOI: self._eoi,
            Kind.ACK: self._ack,
            Kind.USERSPACE_EXIT: self._userspace_exit,
            Kind.HOST_ENTRY: self._host_entry,
            Kind.HOST_EXIT: self._host_exit,
            Kind.WAKING: self._waking,
            Kind.QUEUE_WORK: self._queue_work,
            LOST: self._lost,
        }

    def know(self, threads: Sequence[int]) -> None:
        """The VM has these threads, besides those that it had before."""
        self._threads |= frozenset(threads)

    def feed(self, events: Sequence[Event]) -> None:
        """Join *events*, which are sorted by time."""
        act = self._act
        last = self._last
        for event in events:
            if event[0] >= last:
                break
            self._note(Oddity.LATE, event[0], f"{(last - event[0]) / 1000:.1f} us older than the one before it")
        for time, kind, cpu, fields in events:
            act[kind](time, cpu, fields)
        if events:
            self._last = max(last, events[-1][0])

    def finish(self) -> None:
        """The recording is over: what is still open is counted as unfinished, and a handler's run as not injected."""
        for span in self._open:
            # One that was just under way is no stuck line; how long it had gone on tells the two apart.
            self._give_up(span, f" by the end of the recording, {(self._last - span.inject) / 1000:,.1f} us later")
        self._open.clear()
        if self._handler is not None:
            # A line that nobody listens to stays masked: there is no next run of the handler to note it at.
            self._note(Oddity.NOT_INJECTED, self._handler.entry, "the host's handler ran, no injection until the end")
        self._handler = None

    def _give_up(self, span: Span, when: str = "") -> None:
        if span.masked and not span.ack:
            self._odd(span, Oddity.MASKED, span.masked, "the guest has the pin masked")
        self._note(Oddity.UNFINISHED, span.inject, f"interrupt {span.number} {_missing(span)}{when}")

    def _note(self, oddity: Oddity, time: int, detail: str) -> None:
        self.counts[oddity] += 1
        if self.counts[oddity] <= KEPT_OF_A_KIND:
            self.anomalies.append(Anomaly(oddity, time, detail))

    def _odd(self, span: Span, oddity: Oddity, time: int, detail: str) -> None:
        span.mark(oddity)
        self._note(oddity, time, f"interrupt {span.number}: {detail}")

    # The host's side

    def _host_entry(self, time: int, cpu: int, fields: Fields) -> None:
        waiting = self._handler
        if waiting is not None and not self._is_cut:
            self._note(Oddity.NOT_INJECTED, waiting.entry, "the host's handler ran, no injection followed")
        self._handler = self._running = Handler(time, cpu)

    def _host_exit(self, time: int, cpu: int, fields: Fields) -> None:
        verdict = fields[2]
        running = self._running
        if running is None or running.cpu != cpu:
            return
        running.exit = time
        self._running = None
        if verdict:
            self.handled += 1
        elif running is self._handler:
            self._handler = None
            self._note(Oddity.UNHANDLED, time, "the handler answered that the interrupt is not its device's")

    def _waking(self, time: int, cpu: int, fields: Fields) -> None:
        # What is woken once the interrupt has been injected from within the handler (a message) is a vCPU that slept in
        # HLT: KVM takes it out of there, the thread does not return to userspace.
        running = self._running
        if running is not None and running is self._handler and running.cpu == cpu and fields[1] in self._threads:
            running.trigger = running.trigger or time
            running.woken += 1

    def _queue_work(self, time: int, cpu: int, fields: Fields) -> None:
        running = self._running
        if running is not None and running.cpu == cpu:
            running.trigger = running.trigger or time

    # Up

    def _set_irq(self, time: int, cpu: int, fields: Fields) -> None:
        pid, _, level, source = fields
        if not level:
            self._lower(time, pid, source)
            return
        spans = self._open
        if spans and not spans[-1].drop and spans[-1].source != SOURCE_MSI:
            if source == SOURCE_USERSPACE and pid == spans[-1].pid and self._handler is None:
                # QEMU sets a GSI below 16 twice, once as the PIC's and once as the IOAPIC's: one raise.
                self.restated += 1
                return
            self._odd(spans[-1], Oddity.MERGED, time, "the level was raised again while it was up")
            self._handler = None
            return
        self._raise(time, pid, source)

    def _raise(self, time: int, pid: int, source: int) -> Span:
        self.injected += 1
        span = Span(self.injected, time, source, pid, self._handler)
        span.by_process = source == SOURCE_USERSPACE and pid in self._threads
        self._handler = None
        self._synced, self._is_cut = True, False
        if len(self._open) == _MOST_OPEN:
            self._give_up(self._open.pop(0))
        self._open.append(span)
        return span

    def _ioapic(self, time: int, cpu: int, fields: Fields) -> None:
        pid, entry, pin, coalesced = fields
        span = self._rising(pid)
        if span is None:
            return
        span.route = span.route or time
        span.vector = entry & 0xFF
        if entry & _ENTRY_MASKED:
            span.masked = time
        elif coalesced:
            self._odd(span, Oddity.COALESCED, time, f"pin {pin} had one pending already")

    def _pic(self, time: int, cpu: int, fields: Fields) -> None:
        pid, pin, mask, _ = fields
        # Both chips hear of a GSI below 16; a pin masked at the PIC is normal where the IOAPIC is used.
        span = self._rising(pid)
        if span is not None and not mask >> pin & 1:
            span.route = span.route or time
            span.masked = 0

    def _rising(self, pid: int) -> Span | None:
        """The span whose injection the thread *pid* is in the middle of."""
        if self._open:
            span = self._open[-1]
            if span.pid == pid and not span.drop and not span.eoi:
                return span
        return None

    def _message(self, time: int, cpu: int, fields: Fields) -> None:
        pid, _, data = fields
        vector = data & 0xFF
        rising = self._rising(pid)
        if rising is not None and not rising.route and rising.source != SOURCE_MSI:
            rising.route, rising.vector, rising.source = time, vector, SOURCE_MSI
            return
        running = self._running
        in_handler = running is not None and running.cpu == cpu and running is self._handler
        by_process = not self._has_host and pid in self._threads and self._message_vector in (None, vector)
        if in_handler or by_process:
            self._message_vector = vector
            span = self._raise(time, pid, SOURCE_MSI)
            span.vector = vector
            span.by_process = by_process

    def _accept(self, time: int, cpu: int, fields: Fields) -> None:
        pid, _, vector = fields
        span = self._rising(pid)
        if span is not None:
            if not span.route:
                span.route, span.vector = time, vector
            return
        if self._threads and pid not in self._threads:
            return  # an injection into another VM: a repeated delivery is made by the vCPU that sent the EOI
        for span in self._open:
            if span.vector == vector and span.ack and not span.drop:
                self._odd(span, Oddity.REPEATED, time, "delivered again, the level was still up at the EOI")

    def _inject_vector(self, time: int, cpu: int, fields: Fields) -> None:
        vector = fields[1]
        if self._threads and fields[0] not in self._threads:
            return
        for span in self._open:
            if span.vector == vector and not span.deliver and not span.ack:
                span.deliver = time
                return

    # Down

    def _eoi(self, time: int, cpu: int, fields: Fields) -> None:
        vector = fields[2]
        if self._threads and fields[0] not in self._threads:
            return
        for span in self._open:
            if span.vector == vector and not span.eoi:
                span.eoi = time
                return

    def _ack(self, time: int, cpu: int, fields: Fields) -> None:
        pid = fields[0]
        if self._threads and pid not in self._threads:
            self._foreign(time, pid)
            return
        spans = self._open
        if len(spans) > 1:
            self._ack_several(time, pid)
        elif spans:
            span = spans[0]
            if not span.ack:
                span.ack, span.vcpu = time, pid
                if span.drop:
                    self._over(span)
        elif self._synced:
            self._note(Oddity.ORPHAN_ACK, time, f"thread {pid} acknowledged pin {fields[2]} without an injection")

    def _ack_several(self, time: int, pid: int) -> None:
        waiting = [span for span in self._open if not span.ack]
        for span in waiting[:1] + [span for span in waiting[1:] if span.drop and waiting[0].drop]:
            # Raised and lowered again while an earlier one waited for its EOI: the pin delivers it no more, this
            # acknowledge ends both. One that is still up is delivered after this EOI and has its own.
            if span is not waiting[0]:
                self._odd(span, Oddity.MERGED, time, "raised and lowered again before the EOI of the one before it")
            span.ack, span.vcpu = time, pid
            if span.drop:
                self._over(span)

    def _foreign(self, time: int, pid: int) -> None:
        self._foreign_vcpu = pid
        self._note(Oddity.FOREIGN, time, f"thread {pid} of another VM acknowledged the same GSI")
        span = self._open[-1] if self._open else None
        if span is None or span.drop or span.source == SOURCE_MSI:
            return
        if span.oddities and Oddity.MERGED in span.oddities:
            self._odd(span, Oddity.AMBIGUOUS, time, "two VMs raised the same GSI at once")
        elif span.source == SOURCE_RESAMPLE and not span.ack:
            # Nobody of ours had raised it: the injection was the other VM's.
            self._open.pop()
            self.injected -= 1
            self._handler = span.handler

    def _lower(self, time: int, pid: int, source: int) -> None:
        if pid == self._foreign_vcpu and source == SOURCE_RESAMPLE:
            # The lowering that belongs to another VM's acknowledge, made by the same vCPU right behind it. One from a
            # kernel thread is ours: a resampler that is shut down while the level is up.
            self._foreign_vcpu = 0
            return
        for span in self._open:
            if not span.drop and span.source == source:
                span.drop, span.lowered_by = time, source
                if source == SOURCE_USERSPACE:
                    trapped = self._trapped.get(pid, 0)
                    span.handle = trapped if trapped > span.inject else 0
                    span.lowered_in = pid
                if span.ack:
                    self._over(span)
                return

    def _userspace_exit(self, time: int, cpu: int, fields: Fields) -> None:
        pid, reason = fields
        if self._threads and pid not in self._threads:
            return
        if reason == _EXIT_MMIO:
            self._trapped[pid] = time
            return
        for span in self._open:
            if span.source == SOURCE_MSI and span.eoi and not span.ack:
                span.ack, span.vcpu = time, pid
                span.exits += 1
                self._over(span)
                return

    def _over(self, span: Span) -> None:
        if span.masked:
            self._odd(span, Oddity.MASKED, span.masked, "the guest had the pin masked")
        self._open.remove(span)
        self.done.append(span)

    def _lost(self, time: int, cpu: int, fields: Fields) -> None:
        _, missed, damaged = fields
        many = "an unknown number of events" if missed < 0 else f"{missed} events"
        if damaged:
            self._note(Oddity.DAMAGED, time, f"a page of CPU {cpu} contradicts itself")
        if missed:
            self._note(Oddity.LOST_EVENTS, time, f"{many} lost on CPU {cpu}")
        for span in self._open:
            self._note(Oddity.TORN, span.inject, f"interrupt {span.number} was cut by lost events")
        self._open.clear()
        self._handler = self._running = None
        self._synced, self._is_cut = False, True


def _missing(span: Span) -> str:
    if not span.ack:
        return "was not acknowledged"
    return "kept its level"
