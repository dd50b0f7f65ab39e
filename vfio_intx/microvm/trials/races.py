"""Each scheme run for some hundred interrupts, the negative control included."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.contest import Contestant
from vfio_intx.microvm.figures import SchemeFigures
from vfio_intx.microvm.guest import Pin
from vfio_intx.microvm.trials.row import Ground, Row, judged

ROUNDS = 200
#: Each of these costs the whole time that an acknowledge is waited for.
EDGE_TRIES = 5
PROOF = "irqfd with resample, IOAPIC pin"
_CARRIES = "a card's INTx reaches the guest and is opened again, with nobody in userspace"
_STICKS = "a card's INTx would stick after an interrupt: do not pass one through with this scheme"


def rows(ground: Ground) -> Iterator[Row]:
    """The schemes, the two that matter most first."""
    yield _race(ground, PROOF, Scheme.IRQFD, Pin.IOAPIC, _CARRIES, required=True)
    yield _race(ground, "irqfd with resample, PIC pin", Scheme.IRQFD, Pin.PIC, _CARRIES, required=True)
    fallback = "the userspace fallback works, at the price of wake-ups of the VMM"
    yield _race(ground, "ack-eventfd, IOAPIC pin", Scheme.ACK_EVENTFD, Pin.IOAPIC, fallback)
    yield _race(ground, "trap, IOAPIC pin", Scheme.TRAP, Pin.IOAPIC, fallback)
    yield _race(ground, "split irqchip, KVM_EXIT_IOAPIC_EOI", Scheme.SPLIT, Pin.IOAPIC, fallback)
    yield judged(
        "edge (plain irqfd on a level line), PIC pin",
        f"{EDGE_TRIES} asserted, 0 acknowledged",
        lambda: _edge(ground),
        good="the negative control fails, as it must: a plain irqfd must never carry INTx",
        bad="the negative control came through: do not trust the rows above",
        required=True,
    )


def _race(ground: Ground, name: str, scheme: Scheme, pin: Pin, good: str, *, required: bool = False) -> Row:
    return judged(
        name,
        f"{ROUNDS} asserted, {ROUNDS} acknowledged, 0 lost",
        lambda: _trial(ground, scheme, pin),
        good=good,
        bad=_STICKS,
        required=required,
    )


def _trial(ground: Ground, scheme: Scheme, pin: Pin) -> tuple[bool, str]:
    figures = _figures(ground, scheme, pin)
    seen = f"{figures.triggers} asserted, {figures.acknowledged} acknowledged, {figures.lost} lost"
    if figures.repeated:
        seen += f", {figures.repeated} handler runs repeated"
    return figures.acknowledged == ROUNDS and not figures.lost, seen


def _edge(ground: Ground) -> tuple[bool, str]:
    figures = _figures(ground, Scheme.EDGE, Pin.PIC, EDGE_TRIES)
    seen = f"{figures.triggers} asserted, {figures.acknowledged} acknowledged, {figures.handler_runs} handler runs"
    return figures.acknowledged == 0 and figures.triggers > 0, seen


def _figures(ground: Ground, scheme: Scheme, pin: Pin, rounds: int = ROUNDS) -> SchemeFigures:
    contestant = Contestant(ground.kvm_fd, scheme, pin)
    try:
        contestant.race(rounds, array("Q", bytes(8 * rounds)))
        return contestant.finish()
    finally:
        contestant.close()
