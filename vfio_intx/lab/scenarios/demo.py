"""The main job: two cards' INTx lines forwarded to a guest, proven under two schemes, and handed back."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vfio_intx import __version__
from vfio_intx.chain.evidence import Evidence, Kind, weigh
from vfio_intx.chain.scheme import Scheme
from vfio_intx.deadline import Deadline
from vfio_intx.errors import WorldError
from vfio_intx.lab import demo_rows, kernels
from vfio_intx.lab.demo_rows import FEWEST, Latency, Row
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.passthrough import host_count
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import Card, LabSpec, SerialSocket, UserNetwork
from vfio_intx.lab.traffic import Pings, SerialLines, Traffic, answering
from vfio_intx.names import Bdf

NETWORK = UserNetwork()
NIC = Card("e1000", 0x10, backend=NETWORK)
SERIAL = Card("pci-serial", 0x11, backend=SerialSocket("serial"))
SPEC = LabSpec(kernels.DEFAULT, (NIC, SERIAL))
DEADLINE_S = 900.0
SCHEMES = ("irqfd", "trap")

#: A card without an interrupt keeps a slot free between our two: two slots apart they lead to different GSIs, so that
#: the guest's counters of each line are its own.
GUEST = GuestOptions(extra=("-device", "pci-testdev,addr=3"))

#: How long the kernel's trace runs beside the traffic.
TRACE_S = 2.0
#: How long a machine that is busy with something else may take for what is a matter of moments.
_PATIENCE_S = 60.0

failures = demo_rows.failures
show = demo_rows.table


@contextlib.contextmanager
def outside(results_dir: Path) -> Iterator[None]:
    """The peer at the other end of the serial card's line."""
    with answering(results_dir, "serial"):
        yield


def inside(context: Context) -> dict[str, object]:
    """Do it all by the project's own commands; the rows, whether they hold or not."""
    phases = _Phases(context)
    before = _machine(context)
    cards: dict[Bdf, Traffic] = {context.bdf(NIC): Pings(NETWORK), context.bdf(SERIAL): SerialLines()}
    with phases("scan"):
        verb(context, "scan", *(str(bdf) for bdf in cards), "--json")
    lines: list[Row] = []
    try:
        with phases("bind"):
            for bdf in cards:
                verb(context, "bind", str(bdf))
        with contextlib.ExitStack() as stack:
            with phases("guest boot"):
                guest = stack.enter_context(Guest.start(GUEST))
            versions = _versions(guest)
            for scheme in SCHEMES:
                with phases(scheme):
                    lines += _under(context, guest, cards, scheme)
    finally:
        with phases("restore"):
            for bdf in cards:
                verb(context, "restore", str(bdf))
    left = [f"{what}: {before[what]} became {now}" for what, now in _machine(context).items() if before[what] != now]
    return {
        "schema": demo_rows.SCHEMA,
        "versions": versions,
        "lines": lines,
        "left_behind": left,
        "phases_s": phases.seconds,
    }


class _Phases:
    """Names and times the parts of the demo, from L1's boot on."""

    def __init__(self, context: Context) -> None:
        self._say = context.say
        self.seconds: dict[str, float] = {"L1 boot": float(Path("/proc/uptime").read_text("ascii").split()[0])}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._say(f"{name} ...")
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - begun, 2)


def verb(context: Context, *words: str) -> Any:
    """Run a verb of ours; its JSON if it was asked for. :raise WorldError: with what it said, if it failed."""
    done = context.vfio_intx(*words)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise WorldError(f"vfio-intx {' '.join(words)} ended with {done.returncode}: {said}")
    return json.loads(done.stdout) if "--json" in words else None


def _trace(context: Context, bdf: Bdf, words: Iterable[str]) -> Any:
    """Trace a line, and again while no interrupt came whole: a guest on a busy machine may stand still meanwhile.

    One that saw none to the end is a result all the same: the row will say so.
    """
    found: dict[str, Any] = {}

    def traced() -> bool:
        done = context.vfio_intx("trace", str(bdf), *words)
        if not done.stdout.startswith("{"):
            raise WorldError(f"vfio-intx trace {bdf} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
        found.update(json.loads(done.stdout))
        return (found["handler_to_ack_us"] or {}).get("p50") is not None

    Deadline.after("an interrupt to trace", _PATIENCE_S).poll(traced)
    return found


def _under(context: Context, guest: Guest, cards: Mapping[Bdf, Traffic], scheme: str) -> list[Row]:
    """Attach every card with *scheme*, run traffic through all of them at once, look, detach."""
    attach_all(context, guest, cards, scheme)
    made = measure(context, guest, cards, scheme)
    detach_all(context, guest, cards)
    return made


def attach_all(context: Context, guest: Guest, cards: Mapping[Bdf, Traffic], scheme: str, *further: str) -> None:
    """Attach every card with *scheme* and *further* words, and have the guest's driver take it."""
    for bdf, traffic in cards.items():
        context.say(f"attach {bdf} with {' '.join((scheme, *further))}")
        # The guest's driver is set up meanwhile: attach waits until the guest listens to the line.
        with ThreadPoolExecutor() as pool:
            ready = pool.submit(traffic.prepare, guest)
            words = ("attach", str(bdf), "--qmp", str(guest.qmp), "--scheme", scheme, *further)
            verb(context, *words, "--prove", "0.1", "--timeout", str(_PATIENCE_S))
            ready.result()


def detach_all(context: Context, guest: Guest, cards: Mapping[Bdf, Traffic]) -> None:
    """Have the guest's driver let go of every card, and detach it."""
    for bdf, traffic in cards.items():
        traffic.release(guest)
        verb(context, "detach", str(bdf), "--qmp", str(guest.qmp), "--timeout", str(_PATIENCE_S))


def measure(context: Context, guest: Guest, cards: Mapping[Bdf, Traffic], scheme: str) -> list[Row]:
    """Run traffic through every attached card at once, look meanwhile, count before and after: a row for each."""
    before = {bdf: _counts(guest, bdf, traffic) for bdf, traffic in cards.items()}
    context.say("traffic, status and trace")
    for traffic in cards.values():
        traffic.start(guest)
    # One after the other: L1 has one processor, and each command of ours takes all of it while it starts.
    status = verb(context, "status", "--json")
    words = ("--pid", str(guest.pid), "--seconds", str(TRACE_S), "--json")
    traced = {bdf: _trace(context, bdf, words) for bdf in cards}
    _await_enough(before)
    carried = {bdf: traffic.stop(guest) for bdf, traffic in cards.items()}
    after = {bdf: _counts(guest, bdf, traffic) for bdf, traffic in cards.items()}
    models = {context.bdf(card): card.model for card in (NIC, SERIAL)}
    made = []
    for bdf in cards:
        line = next(line for vm in status["vms"] for line in vm["lines"] if line["device"] == str(bdf))
        seen = [item for item in (*line["evidence"], traced[bdf]["evidence"]) if item]
        verdict = weigh(Evidence(Kind(item["kind"]), item["text"], _scheme(item["speaks_for"])) for item in seen)
        latency = traced[bdf]["handler_to_ack_us"] or {}
        made.append(
            Row(
                device=str(bdf),
                card=models[bdf],
                scheme=scheme,
                host_interrupts=after[bdf][0] - before[bdf][0],
                guest_interrupts=after[bdf][1] - before[bdf][1],
                sent=carried[bdf].sent,
                received=carried[bdf].received,
                unit=carried[bdf].unit,
                proven=verdict.scheme.value if verdict.scheme else None,
                evidence=tuple(f"{item.kind.value}: {item.text}" for item in verdict.evidence if item.speaks_for),
                evidence_kinds=tuple(item.kind.value for item in verdict.evidence if item.speaks_for),
                traced=traced[bdf]["interrupts"],
                lost_events=traced[bdf]["lost_events"],
                wakeups_per_interrupt=traced[bdf]["wakeups_per_interrupt"],
                handler_to_ack_us=Latency(latency.get("p50"), latency.get("p99")),
            )
        )
    return made


def _scheme(word: str | None) -> Scheme | None:
    return None if word is None else Scheme.parse(word)


def _await_enough(before: Mapping[Bdf, tuple[int, int]]) -> None:
    """Let the traffic go on until every row has interrupts enough to show something, if it is not so already.

    Only the host is asked, which costs next to nothing; of twice as many the guest has had enough, too.
    """

    def enough() -> bool:
        return all(host_count(bdf) - host >= 2 * FEWEST for bdf, (host, _) in before.items())

    Deadline.after("enough interrupts", _PATIENCE_S).poll(enough)


def _counts(guest: Guest, bdf: Bdf, traffic: Traffic) -> tuple[int, int]:
    """Interrupts so far, as the host and as the guest counts them."""
    return host_count(bdf), guest.interrupt_count(traffic.handler)


def _machine(context: Context) -> dict[str, object]:
    """What must be as before when the demo has ended: drivers, overrides, tracefs instances, sockets."""
    found: dict[str, object] = {}
    for card in (NIC, SERIAL):
        device = Path(f"/sys/bus/pci/devices/{context.bdf(card)}")
        driver = device / "driver"
        found[f"driver of {card.bdf}"] = driver.resolve().name if driver.exists() else None
        found[f"driver_override of {card.bdf}"] = (device / "driver_override").read_text("ascii").strip()
    found["tracefs instances"] = sorted(path.name for path in Path("/sys/kernel/tracing/instances").iterdir())
    found["sockets"] = sorted(_sockets())
    return found


def _sockets() -> Iterable[str]:
    words = (line.split() for line in Path("/proc/net/unix").read_text("utf-8").splitlines()[1:])
    return {line[7] for line in words if len(line) > 7}


def _versions(guest: Guest) -> dict[str, str]:
    program = guest.argv[0]
    qemu = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {
        "vfio_intx": __version__,
        "python": platform.python_version(),
        "l1_kernel": platform.release(),
        "l2_kernel": guest.check("uname -r").strip(),
        "qemu": qemu,
    }
