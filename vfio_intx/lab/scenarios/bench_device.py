"""Real cards race the schemes through real VFIO lines, with the host's own counts as witness; then wire and unwire.

Each card makes 10,000 real assertions a scheme. (Words after ``--``: cards, interrupts, rounds.) What our program
counts must be what ``/proc/interrupts`` and two tracepoints count: a host interrupt for each assertion, and an
acknowledge of KVM for each run of the guest's handler. Then 10,000 rounds of wiring and unwiring must leave no
descriptor behind.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.errors import UsageError, VerifyError
from vfio_intx.host.irq import vfio_action
from vfio_intx.host.root import HostRoot
from vfio_intx.lab import kernels
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import Card, LabSpec
from vfio_intx.lab.tracecount import TraceCount
from vfio_intx.microvm.contest import GSI
from vfio_intx.microvm.guest import Pin
from vfio_intx.microvm.lane import Lane
from vfio_intx.microvm.real_line import RealLine
from vfio_intx.names import Bdf
from vfio_intx.wiring.device_files import open_device

E1000 = Card("e1000", 0x10, name="e1000")
EDU = Card("edu", 0x11, name="edu")
SPEC = LabSpec(kernels.DEFAULT, (E1000, EDU))
DEADLINE_S = 1200.0

_COUNT, _ROUNDS = 10_000, 10_000
_BENCH_S = 500.0
_AFTERWARDS = 100


def inside(context: Context) -> dict[str, object]:
    """Race on each card, then wire and unwire it."""
    chosen, count, rounds = _options(context.options)
    cards = {}
    for card in chosen:
        bdf = context.bdf(card)
        bound = context.vfio_intx("bind", str(bdf))
        if bound.returncode:
            raise VerifyError(f"bind {bdf} failed: {bound.stderr.strip()}")
        cards[card.name] = {"bench": _bench(context, bdf, count), "churn": _churn(context, bdf, rounds)}
    return {"schema": "vfio-intx/lab-bench-device/1", "count": count, "rounds": rounds, "cards": cards}


def _options(words: Sequence[str]) -> tuple[list[Card], int, int]:
    numbers = [int(word) for word in words if word.isdecimal()]
    names = [word for word in words if not word.isdecimal()]
    if len(numbers) > 2 or not {*names} <= {card.name for card in SPEC.cards}:
        raise UsageError("the words are cards (e1000, edu), then how many interrupts and how many rounds")
    count, rounds = (*numbers, *(_COUNT, _ROUNDS)[len(numbers) :])
    return [card for card in SPEC.cards if card.name in names or not names], count, rounds


def _bench(context: Context, bdf: Bdf, count: int) -> dict[str, object]:
    events = {"irq/irq_handler_entry": "irq,name", "kvm/kvm_ack_irq": "irqchip,pin"}
    schemes = [word for scheme in ("irqfd", "ack-eventfd", "trap") for word in ("--scheme", scheme)]
    begun = time.monotonic()
    with TraceCount("vfio-intx-lab-bench", events) as trace:
        ran = context.vfio_intx(
            "bench", "--device", str(bdf), *schemes, "--count", str(count), "--json", seconds=_BENCH_S
        )
        traced = {
            "irq_handler_entry": trace.total("irq/irq_handler_entry", name=vfio_action(bdf)),
            "kvm_ack_irq": trace.total("kvm/kvm_ack_irq", pin=str(GSI[Pin.IOAPIC])),
        }
    if ran.returncode:
        raise VerifyError(f"bench --device {bdf} ended with {ran.returncode}: {ran.stderr.strip()}")
    said = json.loads(ran.stdout)
    wrong = _disagreements(said, traced, count)
    for row in said["schemes"]:
        counted, trip = said["device"]["host_interrupts"][row["scheme"]], row["round_trip_us"]
        context.say(
            f"{said['device']['card']} {row['scheme']}: {row['triggers']} assertions, {row['lost']} lost, "
            f"{row['late']} late, "
            f"{row['acknowledged']} acknowledged, host counted {counted}, p50 {trip['p50']} us"
        )
    context.say(f"tracefs counted {traced} in {time.monotonic() - begun:.0f} s")
    if wrong:
        raise VerifyError(f"{bdf}: " + "; ".join(wrong))
    return {"result": said, "traced": traced}


def _disagreements(said: Mapping[str, Any], traced: Mapping[str, int], count: int) -> list[str]:
    rows, host = said["schemes"], said["device"]["host_interrupts"]
    wrong = [] if said["device"]["assertion"] == "card" else ["these were not the card's own interrupts"]
    for row in rows:
        name = row["scheme"]
        if (row["triggers"], row["acknowledged"], row["lost"]) != (count, count, 0):
            wrong.append(f"{name}: {row['triggers']} asserted, {row['acknowledged']} acknowledged, {row['lost']} lost")
            wrong += row["notes"]
        if row["handler_runs"] - row["repeated"] != row["triggers"]:
            wrong.append(f"{name}: the guest quieted the card {row['handler_runs'] - row['repeated']} times")
        if host[name] != row["triggers"]:
            wrong.append(f"{name}: /proc/interrupts counted {host[name]}")
        if (row["vmm_wakeups_per_interrupt"] == 0) != (name == "irqfd"):
            wrong.append(f"{name}: {row['vmm_wakeups_per_interrupt']} wake-ups an interrupt")
    if traced["irq_handler_entry"] != sum(row["triggers"] for row in rows):
        wrong.append(f"tracefs counted {traced['irq_handler_entry']} host interrupts")
    if traced["kvm_ack_irq"] != sum(row["handler_runs"] for row in rows):
        wrong.append(f"tracefs counted {traced['kvm_ack_irq']} acknowledges")
    return wrong


def _churn(context: Context, bdf: Bdf, rounds: int) -> dict[str, object]:
    """Wire and unwire, then see that the line still carries interrupts."""
    root = HostRoot()
    kvm_fd = kvm.open_kvm(root.at("dev/kvm"))
    try:
        with open_device(root, bdf) as opened, RealLine(opened, root) as line:
            lane = Lane(kvm_fd, line, Scheme.IRQFD, GSI[Pin.IOAPIC])
            try:
                return _churned(context, lane, rounds)
            finally:
                lane.close()
    finally:
        close_all(kvm_fd)


def _churned(context: Context, lane: Lane, rounds: int) -> dict[str, object]:
    durations = array("Q", bytes(8 * _AFTERWARDS))
    lane.wire()
    lane.unwire()
    before, begun = _descriptors(), time.monotonic()
    for _ in range(rounds):
        lane.wire()
        lane.unwire()
    seconds, left = time.monotonic() - begun, _descriptors() - before
    lane.wire()
    tally = lane.race(_AFTERWARDS, durations, 2.0, 1, grace_s=30.0)
    lane.unwire()
    context.say(
        f"{rounds} rounds of wire and unwire in {seconds:.1f} s: {left} descriptors more; {tally.acknowledged} "
        f"of {_AFTERWARDS} interrupts afterwards"
    )
    if left or tally.acknowledged != _AFTERWARDS:
        raise VerifyError(f"{rounds} rounds left {left} descriptors; {tally.lost} interrupts lost afterwards")
    return {"rounds": rounds, "seconds": seconds, "descriptors_left": left, "interrupts_after": tally.acknowledged}


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def show(result: Mapping[str, Any]) -> Iterable[str]:
    """A line for each card and scheme."""
    for name, card in result["cards"].items():
        for row in card["bench"]["result"]["schemes"]:
            trip = row["round_trip_us"]
            yield (
                f"{name:<6} {row['scheme']:<12} asserted {row['triggers']}, lost {row['lost']}, repeated "
                f"{row['repeated']}, wake-ups {row['vmm_wakeups_per_interrupt']:.2f}, p50 {trip['p50']:.0f} us, "
                f"p99 {trip['p99']:.0f} us, {row['rate_per_s']:.0f} a second"
            )
        churn = card["churn"]
        yield f"{name:<6} wire and unwire: {churn['rounds']} rounds, {churn['descriptors_left']} descriptors left"
