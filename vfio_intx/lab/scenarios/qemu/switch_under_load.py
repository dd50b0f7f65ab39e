"""Thousands of live switches between the schemes while the guest pings without a pause: nothing lost, nothing stuck.

First our own verb switches to each scheme and has to prove it. Then come the thousands, by bare QMP commands: after
each the line has to carry another interrupt before the next may come, so that no switch can hide what the one before
has lost. Words after ``--``: the QEMU base, how many switches, and two or more schemes to switch between in turn (every
one to every other, unless told).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from vfio_intx.errors import UsageError, VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.live_line import (
    DEVICE_ID,
    NETWORK,
    NIC,
    PATH,
    STREAMS,
    HostCount,
    Witnesses,
    base_and_number,
    intx_state,
)
from vfio_intx.lab.passthrough import (
    Flood,
    give_to_vfio,
    is_held,
    ping,
    qemu_for,
    set_network_up,
)
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import LabSpec
from vfio_intx.observe.histogram import Latencies
from vfio_intx.qemu.intx_state import SCHEME, LiveScheme

SPEC = LabSpec(kernels.DEFAULT, (NIC,))
DEADLINE_S = 3600.0

SWITCHES = 10_000
#: So often stuck is enough to know; each costs seconds.
_GIVE_UP = 20
_TELL_S = 15.0
#: Every scheme to every other.
_ORDER = tuple(LiveScheme(name) for name in ("trap", "irqfd", "ack-eventfd", "trap", "ack-eventfd", "irqfd"))


def inside(context: Context) -> dict[str, object]:
    """Boot, plug, ping, switch, count; whether that holds is for :func:`failures` to say."""
    words, order = _order_of(context.options)
    words, switches = base_and_number(words, SWITCHES)
    program, card = qemu_for(words), context.bdf(NIC)
    give_to_vfio(card)
    with Guest.start(GuestOptions(qemu=program)) as guest:
        guest.execute("device_add", driver="vfio-pci", host=str(card), id=DEVICE_ID)
        guest.load("e1000")
        interface = guest.wait_interface()
        set_network_up(guest, NETWORK, interface)
        ping(guest, NETWORK)
        with Witnesses(guest, card, interface) as witnesses:
            first, before = intx_state(guest), witnesses.read()
            flood = Flood(guest, NETWORK, STREAMS)
            flood.start()
            proven = [_switch_and_prove(context, guest, scheme) for scheme in ("trap", "ack-eventfd", "irqfd")]
            begun = time.monotonic()
            taken, resumed, stuck = _switch_on(context, guest, switches, order)
            seconds = time.monotonic() - begun
            pings = flood.stop()
            last, counted = intx_state(guest), witnesses.read().since(before)
        afterwards, held = ping(guest, NETWORK), is_held(card)
        qemu = guest.execute("query-version")
    return {
        "schema": "vfio-intx/lab-switch/2",
        "qemu": qemu,
        "kernel": context.spec.kernel,
        "asked": switches + len(proven),
        "order": [scheme.value for scheme in order],
        "by_our_verb": proven,
        "switches": last.switches - first.switches,
        "failures": last.failures - first.failures,
        "stuck": stuck,
        "seconds": round(seconds, 3),
        "pings": pings.received,
        "lost_pings": pings.lost,
        "late_pings": pings.late,
        "driver_resets": pings.resets,
        "slowest_ping_ms": pings.slowest_ms,
        "interrupts": counted.as_json(),
        "switch_us": {name: times.microseconds() for name, times in taken.items()},
        "next_interrupt_us": {name: times.microseconds() for name, times in resumed.items()},
        "afterwards": {"sent": afterwards.sent, "received": afterwards.received, "held": held},
    }


def _switch_and_prove(context: Context, guest: Guest, scheme: str) -> dict[str, object]:
    """``vfio-intx switch`` as a user runs it; what it says that the line runs, and whether it could prove that."""
    ran = context.vfio_intx("switch", str(context.bdf(NIC)), scheme, "--qmp", str(guest.qmp), "--json", seconds=120)
    if ran.returncode:
        raise VerifyError(f"vfio-intx switch failed: {ran.stderr.strip()}")
    said = json.loads(ran.stdout)
    context.say(f"vfio-intx switch: {said['before']} -> {said['now']}, proven: {said['proven']}")
    return {"asked": scheme, **{name: said[name] for name in ("now", "proven", "milliseconds")}}


Times = dict[str, Latencies]


def _order_of(words: Iterable[str]) -> tuple[tuple[str, ...], tuple[LiveScheme, ...]]:
    """The other words, and the schemes that are named. :raise UsageError: for a single one."""
    names = {scheme.value for scheme in LiveScheme}
    named = tuple(LiveScheme(word) for word in words if word in names)
    if len(named) == 1:
        raise UsageError("one scheme cannot be switched between: name two or more, or none for all")
    return tuple(word for word in words if word not in names), named or _ORDER


def _switch_on(
    context: Context, guest: Guest, switches: int, order: tuple[LiveScheme, ...]
) -> tuple[Times, Times, int]:
    """Switch that often, each time after the line has proved alive.

    :return: how long the switches took, how long it then was until the next interrupt (both of all, and by change), and
        how often none came.
    """
    taken, resumed = Times(all=Latencies()), Times(all=Latencies())
    stuck, scheme = 0, LiveScheme.IRQFD
    told = begun = time.monotonic()
    with HostCount(context.bdf(NIC)) as host:
        for number in range(switches):
            before, scheme = scheme, order[number % len(order)]
            sent = time.monotonic_ns()
            # By the lab's monitor: it costs a fraction of the product's, and all of this shares one emulated CPU.
            guest.execute("qom-set", path=PATH, property=SCHEME, value=scheme.value)
            answered = time.monotonic_ns()
            if not host.moves(host.now()):
                stuck += 1
                context.say(f"switch {number} to {scheme.value}: the line stands still: {intx_state(guest)}")
                if stuck >= _GIVE_UP:
                    break
            moved = time.monotonic_ns()
            for name in ("all", f"{before.value} to {scheme.value}"):
                taken.setdefault(name, Latencies()).extend([answered - sent])
                resumed.setdefault(name, Latencies()).extend([moved - answered])
            if time.monotonic() - told > _TELL_S:
                told, done = time.monotonic(), number + 1
                context.say(f"{done} of {switches} switches, {stuck} stuck, {(told - begun) / done * 1000:.1f} ms each")
            guest.monitor.events.clear()
    return taken, resumed, stuck


def failures(result: Mapping[str, Any]) -> list[str]:
    """What does not hold: each word of "nothing lost, nothing stuck" by a witness of its own."""
    counted, afterwards = result["interrupts"], result["afterwards"]
    unproven = [one["asked"] for one in result["by_our_verb"] if one["now"] != one["asked"] or not one["proven"]]
    # An interrupt that a switch takes back before the guest has seen it fires again when the switch unmasks: the host
    # counts it twice and the guest once. There cannot be more of those than switches.
    missed = counted["host"] - counted["guest"]
    checks = {
        f"{result['switches']} switches instead of {result['asked']}": result["switches"] == result["asked"],
        f"{result['failures']} switches failed": result["failures"] == 0,
        f"not proven after vfio-intx switch: {', '.join(unproven)}": not unproven,
        f"the line stood still after {result['stuck']} switches": result["stuck"] == 0,
        f"{result['lost_pings']} pings were lost": result["lost_pings"] == 0,
        f"the guest's driver has reset the card {result['driver_resets']} times": result["driver_resets"] == 0,
        f"only {result['pings']} pings went through": result["pings"] >= result["switches"] / 10,
        f"the guest has {missed} interrupts fewer than the host": missed <= result["switches"],
        f"/proc/interrupts and the tracepoint disagree: {counted}": counted["host"] == counted["traced"],
        f"the guest handled {counted['guest']} interrupts, but KVM heard {counted['acks']} end": (
            counted["guest"] == counted["acks"]
        ),
        f"afterwards {afterwards['received']} of {afterwards['sent']} pings came back": (
            afterwards["sent"] == afterwards["received"]
        ),
        "afterwards the card is held": not afterwards["held"],
    }
    return [complaint for complaint, holds in checks.items() if not holds]


def show(result: Mapping[str, Any]) -> Iterable[str]:
    """The counts of every witness, then the times."""
    counted = result["interrupts"]
    yield f"{result['switches']} of {result['asked']} switches, {result['stuck']} stuck, {result['failures']} failed"
    yield f"{result['pings']} pings answered, {result['lost_pings']} lost, {result['late_pings']} late"
    yield f"the slowest took {result['slowest_ping_ms']} ms; {result['driver_resets']} resets by the guest's driver"
    yield (
        f"interrupts: host {counted['host']} (tracepoint {counted['traced']}), guest {counted['guest']} "
        f"(acknowledged {counted['acks']}), of them injected by QEMU {counted['qemu']}"
    )
    for what, title in (("switch_us", "the switch took"), ("next_interrupt_us", "then the next interrupt")):
        yield f"{title}:"
        for name, times in result[what].items():
            yield f"  {name:<22} p50 {times['p50']:8.0f} us, p99 {times['p99']:8.0f} us, max {times['max']:8.0f} us"
