"""Thousands of live switches between the schemes while the guest pings without a pause: nothing lost, nothing stuck.

After each single switch the line has to carry another interrupt before the next switch may come, so that no switch can
hide what the one before has lost. Words after ``--``: the QEMU base, and how many switches.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from vfio_intx.deadline import Deadline
from vfio_intx.errors import UsageError, VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.passthrough import (
    give_to_vfio,
    host_count,
    is_held,
    ping,
    qemu_for,
    set_network_up,
    start_pings,
    stop_pings,
    wait_progress,
)
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import Card, LabSpec, UserNetwork
from vfio_intx.observe.histogram import Latencies
from vfio_intx.qemu.intx_state import SCHEME, IntxState, LiveScheme
from vfio_intx.qemu.transports import connect

NETWORK = UserNetwork()
NIC = Card("e1000", 0x10, backend=NETWORK)
SPEC = LabSpec(kernels.DEFAULT, (NIC,))
DEADLINE_S = 1800.0

SWITCHES = 10_000
STREAMS = 2
#: A line that carries nothing for so long, with pings under way, is stuck.
STUCK_S = 5.0
#: Every scheme to every other.
_ORDER = tuple(LiveScheme(name) for name in ("trap", "irqfd", "ack-eventfd", "trap", "ack-eventfd", "irqfd"))


def inside(context: Context) -> dict[str, object]:
    """Boot, plug, ping, switch, compare."""
    words, switches = _options(context.options)
    card = context.bdf(NIC)
    give_to_vfio(card)
    with Guest.start(GuestOptions(qemu=qemu_for(words))) as guest:
        guest.execute("device_add", driver="vfio-pci", host=str(card), id="nic")
        guest.load("e1000")
        interface = guest.wait_interface()
        set_network_up(guest, NETWORK, interface)
        ping(guest, NETWORK)
        before = (host_count(card), guest.interrupt_count(interface), _state(guest))
        start_pings(guest, NETWORK, STREAMS)
        times, stuck = _switch_on(context, guest, switches)
        pings = stop_pings(guest, STREAMS)
        Deadline.after("the last interrupt", 5.0).poll(lambda: not is_held(card))
        after = (host_count(card), guest.interrupt_count(interface), _state(guest))
        last = ping(guest, NETWORK)
        held = is_held(card)
    lost = sum(one.sent - one.received for one in pings)
    result: dict[str, object] = {
        "schema": "vfio-intx/lab-switch/1",
        "switches": after[2].switches - before[2].switches,
        "failures": after[2].failures,
        "stuck": stuck,
        "lost_pings": lost,
        "pings": sum(one.received for one in pings),
        "slowest_ping_ms": max(one.slowest_ms for one in pings),
        "interrupts": {
            "host": after[0] - before[0],
            "guest": after[1] - before[1],
            "qemu": after[2].interrupts - before[2].interrupts,
            "qemu_eois": after[2].eois - before[2].eois,
        },
        "switch_us": times,
    }
    context.say(str(result))
    if stuck or lost or held or last.received != last.sent or after[2].switches - before[2].switches != switches:
        raise VerifyError(f"not every switch went well: {result}, afterwards {last}, held {held}")
    if after[1] - before[1] < after[0] - before[0]:
        raise VerifyError(f"the guest handled fewer interrupts than the host counted: {result}")
    return result


def _options(words: Iterable[str]) -> tuple[tuple[str, ...], int]:
    """The QEMU base and the number of switches among the words, in any order."""
    numbers = [word for word in words if word.isdecimal()]
    if len(numbers) > 1:
        raise UsageError("say once how many switches")
    return tuple(word for word in words if not word.isdecimal()), int(numbers[0]) if numbers else SWITCHES


def _switch_on(context: Context, guest: Guest, switches: int) -> tuple[Mapping[str, float], int]:
    """Switch that often, each time after the line has proved alive: the times, and how often it had not."""
    taken: list[int] = []
    stuck = 0
    card = context.bdf(NIC)
    with connect(guest.qmp) as monitor:
        for number in range(switches):
            scheme = _ORDER[number % len(_ORDER)]
            arguments = {"path": "/machine/peripheral/nic", "property": SCHEME, "value": scheme.value}
            begun = time.monotonic_ns()
            monitor.execute("qom-set", arguments)
            taken.append(time.monotonic_ns() - begun)
            if wait_progress(card, host_count(card), STUCK_S) is None:
                stuck += 1
                context.say(f"switch {number} to {scheme.value}: the line stands still")
            if (number + 1) % 500 == 0:
                context.say(f"{number + 1} switches, {stuck} stuck")
            monitor.take_events()
    times = Latencies()
    times.extend(taken)
    return times.microseconds(), stuck


def _state(guest: Guest) -> IntxState:
    """QEMU's own account of the line."""
    from vfio_intx.qemu import replies

    reply = guest.execute("qom-get", path="/machine/peripheral/nic", property="x-intx-state")
    return replies.parse(reply, IntxState, "qom-get", "the lab's monitor")
