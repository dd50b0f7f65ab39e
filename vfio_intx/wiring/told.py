"""What a QEMU with our series tells of a line, as evidence beside that of other witnesses, and in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vfio_intx.chain.evidence import Evidence, Kind
from vfio_intx.chain.scheme import Scheme
from vfio_intx.errors import PeerRefused
from vfio_intx.names import Bdf, escape
from vfio_intx.qemu.intx_state import Eventfds, IntxState, Irqchip, LiveScheme, read_states
from vfio_intx.qemu.monitor import Monitor

_WHOSE = {
    Eventfds.QEMU: "QEMU's own eventfds",
    Eventfds.GIVEN: "eventfds that were handed over",
    Eventfds.GIVEN_ACK: "eventfds that were handed over; another process unmasks",
}


def read_told(monitor: Monitor) -> tuple[IntxState, ...]:
    """The state of every line; none on a stock QEMU. :raise PeerError: as ``execute`` does otherwise."""
    try:
        return tuple(read_states(monitor))
    except PeerRefused:
        return ()


def told_of(states: Iterable[IntxState], bdf: Bdf) -> IntxState | None:
    """The state of one function's line among these."""
    return next((state for state in states if state.bdf == bdf), None)


def wanted_scheme(state: IntxState) -> Scheme:
    """The scheme that is asked for, in the project's words."""
    split = state.wanted is LiveScheme.IRQFD and state.irqchip is Irqchip.SPLIT
    return Scheme.SPLIT if split else Scheme(state.wanted.value)


def qemu_evidence(state: IntxState) -> Evidence:
    """What QEMU says that the line runs, which is configuration: it says so of itself."""
    live = state.live_scheme
    return Evidence(Kind.CONFIGURATION, f"QEMU says {'nothing' if live is None else live.value}", live)


def told_apart_by_mmaps(counted: Evidence, state: IntxState) -> Evidence:
    """The counters' evidence, where they can only say that QEMU injects: which of the two schemes in which it does.

    It is told by what an interrupt does to the mmaps: ``trap`` has them off afterwards until a second without
    interrupts has passed, ``ack-eventfd`` leaves them on. Where that does not tell, the counters decide nothing.
    """
    if counted.speaks_for is not Scheme.TRAP:
        return counted
    live, by_mmaps = state.live_scheme, Scheme.ACK_EVENTFD if state.mmaps else Scheme.TRAP
    undecided = live in (Scheme.TRAP, Scheme.ACK_EVENTFD) and live is not by_mmaps
    mmaps = "on" if state.mmaps else "off"
    text = f"{counted.text}; the mmaps of its registers are {mmaps}"
    return Evidence(Kind.COUNTERS, text, None if undecided else by_mmaps)


def as_json(state: IntxState) -> dict[str, object]:
    """The ``told`` of a line in ``vfio-intx/status/1``."""
    return {
        "mode": state.mode.value,
        "wanted": state.wanted.value,
        "scheme": None if state.scheme is None else state.scheme.value,
        "reason": None if state.reason is None else escape(state.reason),
        "route": state.route.value,
        "pending": state.pending,
        "mmaps": state.mmaps,
        "eventfds": state.eventfds.value,
        "trigger_fd": state.trigger_fd,
        "resample_fd": state.resample_fd,
        "interrupts": state.interrupts,
        "eois": state.eois,
        "switches": state.switches,
        "failures": state.failures,
    }


def in_words(state: IntxState) -> Iterator[str]:
    """For people: a line on how it runs, and why not as wanted where that is so."""
    if state.scheme is None:
        yield f"interrupt mode {state.mode.value}, route {state.route.value}"
        return
    if state.scheme is not state.wanted:
        why = escape(state.reason or "QEMU gives no reason")
        yield f"wanted {state.wanted.value}, runs {state.scheme.value}: {why}"
    yield (
        f"{_WHOSE[state.eventfds]}, route {state.route.value}, mmaps {'on' if state.mmaps else 'off'}, "
        f"{state.switches} switches, {state.failures} failures, {state.interrupts} interrupts injected by QEMU"
    )
