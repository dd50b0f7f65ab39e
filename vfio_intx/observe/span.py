"""One interrupt as a span of milestones, and the words for what can be odd about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vfio_intx.chain.stage import Stage

#: Of the injection: the irqchip's input that raised the level (``irq_source_id``), and ours for a message.
SOURCE_USERSPACE, SOURCE_RESAMPLE, SOURCE_MSI = 0, 1, -1
#: The stages by their place, from 0.
CHAIN = tuple(Stage)
_HOST_IRQ, _HOST_MASK, _TRIGGER = (CHAIN.index(stage) for stage in (Stage.HOST_IRQ, Stage.HOST_MASK, Stage.TRIGGER))
_INJECT, _ROUTE, _DELIVER = (CHAIN.index(stage) for stage in (Stage.INJECT, Stage.ROUTE, Stage.DELIVER))
_HANDLE, _EOI, _RESAMPLE = (CHAIN.index(stage) for stage in (Stage.HANDLE, Stage.EOI, Stage.RESAMPLE))


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
    """The host's handler took it, and no injection followed before the next one, or before the end."""
    ORPHAN_ACK = "orphan-ack"
    """Acknowledged without an injection of this line: another source on the GSI, or a spurious EOI."""
    FOREIGN = "foreign"
    """Acknowledged by another VM that uses the same GSI."""
    AMBIGUOUS = "ambiguous"
    """Two VMs with the same GSI raised it at once: whose injection this was is a guess."""
    UNFINISHED = "unfinished"
    """Still not over when the recording ended, or after so many more that no end was waited for."""
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
    :ivar lowered_by: the source id that dropped the level, None while it is up; ``lowered_in``: the thread, where
        userspace did.
    :ivar masked: when it met a pin that the guest has masked.
    :ivar exits: exits of a vCPU to userspace that the acknowledge needed.
    """

    # Defaults of the class, so that making one sets only what is known: tens of thousands are made in a second.
    route = deliver = handle = eoi = ack = drop = masked = exits = 0
    vector = vcpu = -1
    by_process = False
    lowered_by: int | None = None
    lowered_in = -1
    oddities: dict[Oddity, int] | None = None

    def __init__(self, number: int, inject: int, source: int, pid: int, handler: Handler | None) -> None:
        self.number = number
        self.inject = inject
        self.source = source
        self.pid = pid
        self.handler = handler

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

    def moments(self) -> list[int]:
        """The moments of its milestones in the order of time, each times 16 plus the place of its stage in the chain.

        One number for both, so that sorting and taking apart cost next to nothing.
        """
        ack, drop = self.ack, self.drop
        reached = [self.inject * 16 + _INJECT, (self.eoi or ack) * 16 + _EOI, (drop or ack) * 16 + _RESAMPLE]
        if self.route:
            reached.append(self.route * 16 + _ROUTE)
        if self.deliver:
            reached.append(self.deliver * 16 + _DELIVER)
        if self.handle:
            reached.append(self.handle * 16 + _HANDLE)
        host = self.handler
        if host is not None:
            reached.append(host.entry * 16 + _HOST_IRQ)
            if host.exit:
                reached.append(host.exit * 16 + _HOST_MASK)
            if host.trigger:
                reached.append(host.trigger * 16 + _TRIGGER)
        reached.sort()
        return reached

    def milestones(self) -> list[tuple[Stage, int]]:
        """Each stage that was seen with the moment it was reached, in the order of time."""
        return [(CHAIN[moment & 15], moment >> 4) for moment in self.moments() if moment > 15]

    def mark(self, oddity: Oddity) -> None:
        """Note that something about it was odd."""
        if self.oddities is None:
            self.oddities = {}
        self.oddities[oddity] = self.oddities.get(oddity, 0) + 1
