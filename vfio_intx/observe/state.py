"""The word for how a line fares, decided from two looks at it. Pure.

One look decides little: a line that is asserted and masked is what every interrupt looks like until the guest has
acknowledged it. So a line is only called stuck when it was so in two looks and nothing advanced for a stated time.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from vfio_intx.chain.stage import Stage

#: No stage has advanced for so long: stuck. Half of what a disk's driver waits before it resets its card.
STUCK_AFTER_S = 1.0
#: More interrupts a second than any INTx card makes on purpose.
STORM_PER_S = 20_000.0


class Word(Enum):
    """How a line fares."""

    IDLE = "idle"
    HEALTHY = "healthy"
    WAITING = "waiting"
    MASKED = "masked"
    STUCK = "stuck"
    STORMING = "storming"
    POLLING = "polling"
    UNKNOWN = "unknown"


class State(msgspec.Struct, frozen=True):
    """The word, the stage where it is stuck, and why."""

    word: Word
    stage: Stage | None
    why: str

    def __str__(self) -> str:
        if self.word is Word.STUCK and self.stage is not None:
            return f"stuck at {self.stage.value}"
        return "polling (host line disabled)" if self.word is Word.POLLING else self.word.value


class Look(msgspec.Struct, frozen=True):
    """A line at one moment. What could not be read is None.

    :ivar at: seconds of the monotonic clock.
    :ivar count: interrupts of the host's line since boot, its other users' included.
    :ivar asserted: Interrupt Status of the device (PCI Status, bit 3).
    :ivar masked: DisINTx of the device (PCI Command, bit 10).
    :ivar disabled: the kernel gave up the line ("nobody cared") and only polls it.
    """

    at: float
    count: int
    asserted: bool | None = None
    masked: bool | None = None
    disabled: bool | None = None


def advanced(before: Look, now: Look) -> bool:
    """Whether anything happened between two looks: an interrupt, or the device's state changed."""
    return (before.count, before.asserted, before.masked) != (now.count, now.asserted, now.masked)


def judge(before: Look, now: Look, still_s: float) -> State:
    """The state of a line. *still_s* is for how long nothing has advanced, as far as it was watched."""
    seconds = now.at - before.at
    rate = (now.count - before.count) / seconds if seconds > 0 else 0.0
    if now.disabled:
        return State(Word.POLLING, Stage.HOST_IRQ, "the kernel disabled the host's line, nobody claimed its interrupts")
    if rate > STORM_PER_S:
        return State(Word.STORMING, None, f"{rate:,.0f} interrupts a second: the device is not quieted by its handler")
    if now.asserted and now.masked:
        if still_s < STUCK_AFTER_S or not before.asserted:
            return State(Word.WAITING, None, "asserted and masked: the guest has not acknowledged yet")
        why = f"for {still_s:.0f} s nothing advanced; whether the guest acknowledged it, only its QEMU could tell"
        return State(Word.STUCK, Stage.EOI, why)
    if now.masked:
        why = "the guest switched INTx off, or nobody has unmasked the line since its last interrupt"
        return State(Word.MASKED, None, f"DisINTx is set and the device does not assert: {why}")
    if now.asserted and not rate and still_s >= STUCK_AFTER_S:
        # A device without DisINTx is masked at the host's interrupt controller; then this is all one sees of it.
        return State(Word.STUCK, Stage.HOST_IRQ, f"asserted for {still_s:.0f} s, unmasked at the device, none counted")
    if rate > 0:
        return State(Word.HEALTHY, None, f"{rate:,.1f} interrupts a second")
    if now.asserted is None:
        return State(Word.UNKNOWN, None, "no interrupts, and the device's state cannot be read")
    return State(Word.IDLE, None, "the device asks for nothing")
