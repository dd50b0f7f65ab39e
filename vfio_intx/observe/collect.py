"""One tracing run: the instance, the reading of its pages, the joining, and what came out of it.

A reader that takes pages at its own pace cannot know that a CPU is not still writing an event older than one it already
has. So events are joined only up to a moment some milliseconds before the reading began; younger ones wait for the next
round. An event that comes later still is counted (``late``), never hidden.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter

from vfio_intx.abi.tracepoints import Event
from vfio_intx.errors import WorldError
from vfio_intx.host.irq import read_interrupts
from vfio_intx.host.root import HostRoot
from vfio_intx.observe.events import HOST_SIDE, Target, plan
from vfio_intx.observe.span import Anomaly, Span
from vfio_intx.observe.spans import Joiner
from vfio_intx.observe.summary import Summary
from vfio_intx.observe.target import learn, only_of, threads_of
from vfio_intx.observe.tracefs import read_start
from vfio_intx.observe.tracing import Instance, Keeper

#: How far behind the reading the joining stays, in ns.
_BEHIND_NS = 5_000_000
#: Buffer of all CPUs together, and the bounds of one CPU's, in KiB.
_ALL_KB, _LEAST_KB, _MOST_KB = 64 << 10, 1 << 10, 16 << 10
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5
#: Events held back while the GSI is still to be learnt; then the older half is let go.
_MOST_HELD = 200_000
_CHECK_S = 1.0
_by_time = itemgetter(0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What the run cost: CPU seconds of this process (user and system), and events read."""

    cpu_s: float
    events: int

    @property
    def events_per_cpu_s(self) -> float:
        """Events read, joined and summed up in one second of CPU."""
        return self.events / self.cpu_s if self.cpu_s else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What one run has found.

    :ivar ended: why it ended: ``time``, ``count``, ``stopped``, ``vm-gone`` or ``line-gone``.
    :ivar lost_events: by the kernel's own statistics of the buffers.
    :ivar without: tracepoints that this kernel does not have.
    """

    target: Target
    seconds: float
    ended: str
    summary: Summary
    anomalies: tuple[Anomaly, ...]
    anomaly_counts: Mapping[str, int]
    handled: int
    injected: int
    restated: int
    lost_events: int
    cost: Cost
    without: tuple[str, ...] = field(default=())


def default_size_kb() -> int:
    """A CPU's buffer for the ceiling: a second's worth of events where the machine has few CPUs."""
    return min(max(_ALL_KB // (os.cpu_count() or 1), _LEAST_KB), _MOST_KB)


class Tracer:
    """Traces one line inside its ``with``: :meth:`poll` now and then, :meth:`finish` for the report.

    :param sink: is given every finished span, for exports; what it raises ends the run, the instance is removed.
    :param keeper: is given the pages as they are read.
    :raise KernelError, MissingError: as :class:`~vfio_intx.observe.tracing.Instance`.
    """

    Sink = Callable[[list[Span]], None]
    Tell = Callable[["Tracer"], None]

    def __init__(
        self,
        target: Target,
        *,
        root: HostRoot,
        pid: int | None = None,
        size_kb: int | None = None,
        sink: Sink | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.target = target
        self.summary = Summary()
        self.instance = Instance(root, plan(target), size_kb=size_kb or default_size_kb(), keeper=keeper)
        self._root = root
        self._pid = pid
        self._start = read_start(root, pid) if pid is not None else None
        self._sink = sink
        self._joiner = Joiner(target)
        self._learning = target.gsi is None and target.irq is not None
        self._pending: list[Event] = []
        self._events = 0
        self._pause = _SHORTEST_PAUSE_S
        self._checked = self._looked = 0.0
        self._mixed = False

    def __enter__(self) -> Tracer:
        self._cpu = time.process_time()
        self.instance.__enter__()
        self._began = time.monotonic()
        try:
            self.instance.start()
        except BaseException:
            self.instance.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.instance.close()

    @property
    def pause_s(self) -> float:
        """How long the caller may wait before the next :meth:`poll`: long while little happens."""
        return self._pause

    def poll(self) -> None:
        """Read what the kernel has recorded, join what is old enough."""
        self._see_threads()
        until = time.monotonic_ns() - _BEHIND_NS
        most = self._read()
        self._pending.sort(key=_by_time)
        place = _first_after(self._pending, until)
        self._join(self._pending[:place], last=False)
        # Half a buffer in one round is too much: come twice as often; an eighth: half as often.
        part = most / (self.instance.size_kb * 1024)
        if part > 0.25:
            self._pause = max(_SHORTEST_PAUSE_S, self._pause / 2)
        elif part < 0.06:
            self._pause = min(_LONGEST_PAUSE_S, self._pause * 1.5)

    def _see_threads(self) -> None:
        """Follow the threads that the VM has made since (a vCPU that was plugged in). Looks about once a second."""
        now = time.monotonic()
        if self._pid is None or now - self._looked < _CHECK_S:
            return
        self._looked = now
        try:
            threads = threads_of(self._root, self._pid)
        except WorldError:
            return  # gone: that is told by gone()
        if set(threads) <= set(self.target.threads) or read_start(self._root, self._pid) != self._start:
            return
        self.target = replace(self.target, threads=threads)
        self._joiner.know(threads)
        self.instance.refilter(plan(self.target))

    def _read(self) -> int:
        before = len(self._pending)
        most = self.instance.drain(self._pending)
        self._events += len(self._pending) - before
        return most

    def _join(self, events: list[Event], *, last: bool) -> None:
        if self._learning:
            learnt = learn(self.target, events, least=1) if last else learn(self.target, events)
            if learnt is None:
                self._wait(events, last=last)
                return
            self._learning = False
            self._mixed = True
            self.target = learnt
            if not last:
                self.instance.refilter(plan(learnt))
        del self._pending[: len(events)]
        self._joiner.feed(only_of(self.target, events) if self._mixed else events)
        self._hand_on()

    def _wait(self, events: list[Event], *, last: bool) -> None:
        """No injection can be told to be the line's yet. Events are kept for a while, for its first interrupts.

        Of those that are let go, what the host's handler did is counted: a line that nobody injects is no quiet one.
        """
        gone = len(events) if last else 0 if len(events) < _MOST_HELD else len(events) // 2
        self._joiner.feed([event for event in events[:gone] if event[1] in HOST_SIDE])
        del self._pending[:gone]

    def _hand_on(self) -> None:
        done = self._joiner.done
        if done:
            self.summary.add(done)
            if self._sink is not None:
                self._sink(done)
            done.clear()

    def elapsed_s(self) -> float:
        """Seconds since the recording began."""
        return time.monotonic() - self._began

    def gone(self) -> str | None:
        """``vm-gone`` if the VM's process no longer lives, ``line-gone`` if vfio no longer handles the host's IRQ.

        The latter is a device that was unplugged, or a guest that switched to MSI. Looks about once a second.
        """
        now = time.monotonic()
        if now - self._checked < _CHECK_S:
            return None
        self._checked = now
        if self._pid is not None and read_start(self._root, self._pid) != self._start:
            return "vm-gone"
        irq, action = self.target.irq, self.target.action
        if irq is not None and action is not None:
            lines = read_interrupts(self._root).value
            if lines is not None and (irq not in lines or action not in lines[irq].actions):
                return "line-gone"
        return None

    def finish(self, ended: str = "stopped") -> Report:
        """Stop recording, join the rest, and report. The instance is still there until the ``with`` is left."""
        self.instance.stop()
        seconds = self.elapsed_s()
        while self._read():
            pass  # a full buffer holds some pages more than its size
        self._pending.sort(key=_by_time)
        self._join(list(self._pending), last=True)
        self._joiner.finish()
        lost = sum(cpu.lost for cpu in self.instance.statistics().values())
        return Report(
            self.target,
            seconds,
            ended,
            self.summary,
            tuple(sorted(self._joiner.anomalies, key=lambda anomaly: anomaly.time)),
            {oddity.value: count for oddity, count in self._joiner.counts.items()},
            self._joiner.handled,
            self._joiner.injected,
            self._joiner.restated,
            lost,
            Cost(time.process_time() - self._cpu, self._events),
            tuple(self.instance.without),
        )


def _first_after(events: list[Event], moment: int) -> int:
    low, high = 0, len(events)
    while low < high:
        middle = (low + high) // 2
        if events[middle][0] <= moment:
            low = middle + 1
        else:
            high = middle
    return low


def run(
    tracer: Tracer,
    *,
    seconds: float | None,
    count: int | None,
    stop: Callable[[], bool] = lambda: False,
    tell: Tracer.Tell = lambda tracer: None,
) -> Report:
    """Enter *tracer*, poll it until *seconds* are over or *count* interrupts were seen, and report.

    :param stop: asked after each poll: whether somebody wants an end.
    :param tell: is called after each poll, for a live line.
    """
    with tracer:
        ends = None if seconds is None else time.monotonic() + seconds
        while True:
            left = float("inf") if ends is None else ends - time.monotonic()
            time.sleep(max(0.0, min(tracer.pause_s, left)))
            tracer.poll()
            tell(tracer)
            if count is not None and tracer.summary.interrupts >= count:
                return tracer.finish("count")
            if stop():
                return tracer.finish("stopped")
            if left <= 0:
                return tracer.finish("time")
            if gone := tracer.gone():
                return tracer.finish(gone)
