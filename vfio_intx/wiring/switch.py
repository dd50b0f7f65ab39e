"""Change the scheme of a live line, and prove what came out. Needs a QEMU with our series.

QEMU does the change: it masks the line, takes the old wiring down, puts the new one up and unmasks, which tells again
of an interrupt that came meanwhile. A wiring that fails is undone by QEMU itself. What is left for us is to ask for the
right thing, and not to believe the answer: the state is read back, and then the two counters are watched.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from vfio_intx.chain.evidence import Evidence, Verdict, weigh
from vfio_intx.chain.scheme import Scheme
from vfio_intx.deadline import Deadline
from vfio_intx.errors import RefusedError, UsageError, VerifyError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, Gsi, escape
from vfio_intx.qemu.features import probe
from vfio_intx.qemu.intx_state import (
    SWITCHABLE,
    IntxState,
    Irqchip,
    Mode,
    read_state,
    require_told,
    scheme_arguments,
    set_scheme,
)
from vfio_intx.qemu.monitor import Monitor
from vfio_intx.wiring.told import qemu_evidence, told_apart_by_mmaps
from vfio_intx.wiring.verify import HostLine, Window, counters_evidence, read_host_line


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. ``prove_s`` is how long to wait for an interrupt to prove the scheme by; 0 for not at all."""

    bdf: Bdf
    scheme: Scheme
    prove_s: float = 3.0

    def __post_init__(self) -> None:
        """:raise UsageError: no live line can be switched to that scheme."""
        if self.scheme not in SWITCHABLE:
            raise UsageError(
                f"a live line cannot be switched to {self.scheme.value}",
                hint="one of " + ", ".join(scheme.value for scheme in SWITCHABLE),
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done: ``arguments`` of ``qom-set``, None where the line runs the scheme already."""

    before: IntxState
    arguments: dict[str, object] | None

    @property
    def command(self) -> str | None:
        """The exact QMP command."""
        if self.arguments is None:
            return None
        return json.dumps({"execute": "qom-set", "arguments": self.arguments})


@dataclass(frozen=True, slots=True)
class Switched:
    """What came out. ``took_s`` is the time from the command to its answer, 0 where there was nothing to do."""

    bdf: Bdf
    before: Scheme | None
    state: IntxState
    verdict: Verdict
    took_s: float

    def as_json(self) -> dict[str, object]:
        """For programs: the shape of ``vfio-intx/switch/1``."""
        return {
            "device": str(self.bdf),
            "id": self.state.device_id,
            "before": None if self.before is None else self.before.value,
            "now": None if self.state.live_scheme is None else self.state.live_scheme.value,
            "proven": self.verdict.proven,
            "why_not_proven": self.verdict.why_not,
            "evidence": [
                {
                    "kind": item.kind.value,
                    "text": item.text,
                    "speaks_for": None if item.speaks_for is None else item.speaks_for.value,
                }
                for item in self.verdict.evidence
            ],
            "gsi": self.state.gsi,
            "switches": self.state.switches,
            "failures": self.state.failures,
            "milliseconds": round(self.took_s * 1000, 3),
        }

    def in_words(self) -> list[str]:
        """For people: what changed, then what it rests on."""
        now = self.state.live_scheme
        was = "nothing" if self.before is None else self.before.value
        name = "nothing" if now is None else now.value
        proof = "proven" if self.verdict.proven else f"not proven: {self.verdict.why_not}"
        change = f"{was} -> {name} in {self.took_s * 1000:.1f} ms" if self.took_s else f"{name} already"
        return [f"{self.bdf}: {change}, {proof}"] + [
            f"  {item.kind.value}: {escape(item.text)}"
            + (f" -> {item.speaks_for.value}" if item.speaks_for is not None else "")
            for item in self.verdict.evidence
        ]


def plan(request: Request, monitor: Monitor) -> Plan:
    """Look at the VM and decide; nothing is changed.

    :raise MissingError: a stock QEMU, or the function is not in this VM.
    :raise RefusedError: the line cannot run the scheme, or there is none.
    """
    require_told(probe(monitor), monitor)
    before = read_state(monitor, request.bdf)
    _require_possible(request, before)
    if before.live_scheme is _expected(request.scheme, before) and before.wanted.value == request.scheme.value:
        return Plan(before, None)
    return Plan(before, scheme_arguments(before, request.scheme))


def _require_possible(request: Request, state: IntxState) -> None:
    if state.mode is not Mode.INTX:
        raise RefusedError(
            f"{request.bdf} has no INTx in use: its interrupt mode is {state.mode.value}",
            hint="only a guest whose driver uses the pin has a line to switch; nothing was changed",
        )
    if request.scheme is Scheme.ACK_EVENTFD and state.irqchip is Irqchip.SPLIT:
        raise RefusedError(
            "this VM was started with kernel-irqchip=split, where KVM signals no EOI by eventfd",
            hint="irqfd and trap are possible; nothing was changed",
        )
    if request.scheme is not Scheme.TRAP and state.irqchip is Irqchip.NONE:
        raise RefusedError(
            f"this VM's interrupt controllers live in QEMU, so {request.scheme.value} is impossible",
            hint="trap is what is left; nothing was changed",
        )


def _expected(scheme: Scheme, state: IntxState) -> Scheme:
    """What the line will be said to run: irqfd with a split irqchip is ``split``."""
    return Scheme.SPLIT if scheme is Scheme.IRQFD and state.irqchip is Irqchip.SPLIT else scheme


def switch(request: Request, monitor: Monitor, root: HostRoot) -> Switched:
    """Do it; the result says what is proven.

    :raise PeerRefused: QEMU's reason; the line is as it was.
    :raise VerifyError: QEMU agreed but runs something else now.
    :raise WorldError: as :func:`plan` does.
    """
    planned = plan(request, monitor)
    took = 0.0
    if planned.arguments is not None:
        begun = time.monotonic()
        set_scheme(monitor, planned.before, request.scheme)
        took = time.monotonic() - begun
    state, seen, line = _watch(request, monitor, root)
    expected = _expected(request.scheme, state)
    if state.live_scheme is not expected:
        runs = "nothing" if state.live_scheme is None else state.live_scheme.value
        raise VerifyError(
            f"QEMU accepted {request.scheme.value} for {request.bdf}, but runs {runs}: {escape(state.reason or '')}",
            hint="vfio-intx status shows the line; the guest may have reset or re-routed the device just now",
        )
    return Switched(request.bdf, planned.before.live_scheme, state, weigh(_evidence(state, seen, line)), took)


def _watch(request: Request, monitor: Monitor, root: HostRoot) -> tuple[IntxState, Window, HostLine | None]:
    """Both counters from now until the host has counted an interrupt, or ``prove_s`` is over.

    QEMU is asked first and last, so that what the host counted lies within.
    """
    before = read_state(monitor, request.bdf)
    first = read_host_line(root, request.bdf)
    begun = time.monotonic()

    def counted() -> bool:
        line = read_host_line(root, request.bdf)
        return first is not None and line is not None and line.count > first.count

    if request.prove_s > 0:
        Deadline.after("an interrupt to prove by", request.prove_s).poll(counted)
    last = read_host_line(root, request.bdf)
    seconds = time.monotonic() - begun
    # The first answer only makes sure that QEMU's loop has seen what the host counted; the second has the counts.
    read_state(monitor, request.bdf)
    after = read_state(monitor, request.bdf)
    host = last.count - first.count if first is not None and last is not None and first.irq == last.irq else 0
    return after, Window(seconds, max(0, host), after.interrupts - before.interrupts), last


def _evidence(state: IntxState, seen: Window, line: HostLine | None) -> tuple[Evidence, ...]:
    gsis = () if state.gsi is None else (Gsi(state.gsi),)
    counted = counters_evidence(
        seen, state.irqchip_kind, gsis, host_others=line.others if line is not None else (), guest_others=()
    )
    return (qemu_evidence(state), told_apart_by_mmaps(counted, state))
