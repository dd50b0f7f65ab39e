"""One interrupt as a span of milestones, and the words for what can be odd about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vfio_intx.chain.stage import Stage

#: Of the injection: the irqchip's input that raised the level (``irq_source_id``), and ours for a message.
SOURCE_USERSPACE, SOURCE_RESAMPLE, SOURCE_MSI = 0, 1, -1


class Oddity(Enum):
    """What can be odd about an interrupt, or about the record of it."""

    MERGED = "merged"
    """The level was raised again while it was still up: two causes, one interrupt."""
    REPEATED = "repeated"
    """Delivered again at the EOI, because the level was still up."""
    MASKED = "masked"
    """The guest has the pin masked: latched, not delivered."""
    COALESCED = "coalesced"
    """The irqchip had it pending already and says that nothing was delivered."""
    UNHANDLED = "unhandled"
    """The host's handler answered IRQ_NONE: a neighbour on a shared line."""
    NOT_INJECTED = "not-injected"
    """The host's handler took it, and no injection followed before the next one."""
    ORPHAN_ACK = "orphan-ack"
    """Acknowledged without an injection of this line: another source on the GSI, or a spurious EOI."""
    FOREIGN = "foreign"
    """Acknowledged by another VM that uses the same GSI."""
    AMBIGUOUS = "ambiguous"
    """Two VMs with the same GSI raised it at once: whose injection this was is a guess."""
    UNFINISHED = "unfinished"
    """Still not over when the recording ended."""
    TORN = "torn"
    """Cut by lost events: neither counted as an interrupt nor timed."""
    LOST_EVENTS = "lost-events"
    """The kernel lost events here."""
    DAMAGED = "damaged-page"
    """A page of the record contradicted itself."""
    LATE = "late"
    """An event older than what had been joined already."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One odd thing, when (ns of the monotonic clock), and a word more."""

    oddity: Oddity
    time: int
    detail: str


class Handler:
    """One run of the host's interrupt handler; times in ns, 0 for "not seen"."""

    __slots__ = ("cpu", "entry", "exit", "trigger", "woken")

    def __init__(self, entry: int, cpu: int) -> None:
        self.entry = entry
        self.cpu = cpu
        self.exit = 0
        self.trigger = 0
        self.woken = 0


class Span:
    """One interrupt. Times are ns of the monotonic clock, 0 for a milestone that was not seen.

    :ivar handler: the host's part; None where the interrupt comes from no device.
    :ivar source: of the injection: 1 resample irqfd, 0 userspace or plain irqfd, -1 a message (split).
    :ivar by_process: the injection was made by a thread of the VM's process.
    :ivar lowered_by: the source id that dropped the level, None while it is up.
    :ivar masked: when it met a pin that the guest has masked.
    :ivar exits: exits of a vCPU to userspace that the acknowledge needed.
    """

    __slots__ = (
        "ack", "by_process", "cpu", "deliver", "drop", "eoi", "exits", "handle", "handler", "inject", "lowered_by",
        "masked", "number", "oddities", "pid", "route", "source", "vcpu", "vector",
    )  # fmt: skip

    def __init__(self, number: int, inject: int, source: int, cpu: int, pid: int, handler: Handler | None) -> None:
        self.number = number
        self.inject = inject
        self.source = source
        self.cpu = cpu
        self.pid = pid
        self.handler = handler
        self.by_process = False
        self.lowered_by: int | None = None
        self.route = self.deliver = self.handle = self.eoi = self.ack = self.drop = self.masked = 0
        self.vector = self.vcpu = -1
        self.exits = 0
        self.oddities: dict[Oddity, int] | None = None

    @property
    def start(self) -> int:
        """When it began, as far as it was seen: the host's handler, else the injection."""
        return self.handler.entry if self.handler else self.inject

    @property
    def end(self) -> int:
        """When it was over."""
        return max(self.ack, self.drop)

    @property
    def userspace_runs(self) -> int:
        """How often userspace had to run for it (see :mod:`vfio_intx.observe.summary`)."""
        woken = self.by_process or (self.handler is not None and self.handler.woken > 0)
        lowered = self.by_process and self.lowered_by == SOURCE_USERSPACE
        return int(woken) + int(lowered) + self.exits

    def milestones(self) -> list[tuple[Stage, int]]:
        """Each stage that was seen with the moment it was reached, in the order of time."""
        reached = [
            (Stage.INJECT, self.inject),
            (Stage.ROUTE, self.route),
            (Stage.DELIVER, self.deliver),
            (Stage.HANDLE, self.handle),
            (Stage.EOI, self.eoi or self.ack),
            (Stage.RESAMPLE, self.drop or self.ack),
        ]
        if self.handler is not None:
            host = self.handler
            reached += [(Stage.HOST_IRQ, host.entry), (Stage.HOST_MASK, host.exit), (Stage.TRIGGER, host.trigger)]
        seen = [item for item in reached if item[1]]
        seen.sort(key=_moment)
        return seen

    def mark(self, oddity: Oddity) -> None:
        """Note that something about it was odd."""
        if self.oddities is None:
            self.oddities = {}
        self.oddities[oddity] = self.oddities.get(oddity, 0) + 1


def _moment(milestone: tuple[Stage, int]) -> int:
    return milestone[1]
