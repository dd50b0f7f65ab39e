"""The wirings of one line raced in one run: packets and interrupts a second under the same pings, as ratios.

Five wirings take turns, round after round, so that what else the machine does meets them all: ``irqfd`` on eventfds of
QEMU and of ours, ``ack-eventfd`` and ``trap`` in QEMU, and our process in the path. Words after ``--``: the QEMU base,
and how many rounds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from vfio_intx.deadline import Deadline
from vfio_intx.errors import VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.live_line import (
    DEVICE_ID,
    NETWORK,
    NIC,
    PATH,
    STREAMS,
    HostCount,
    base_and_number,
    fork_tap,
    intx_state,
)
from vfio_intx.lab.passthrough import Flood, give_to_vfio, is_held, ping, qemu_for, set_network_up
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import LabSpec
from vfio_intx.names import Bdf
from vfio_intx.qemu.intx_state import SCHEME, Eventfds
from vfio_intx.qemu.transports import connect
from vfio_intx.wiring.direct import own_eventfds
from vfio_intx.wiring.handover import hand_over

SPEC = LabSpec(kernels.DEFAULT, (NIC,))
DEADLINE_S = 1800.0

ROUNDS = 8
_WINDOW_S = 3.0
_ENTER_S = 60.0
BASE = "irqfd by QEMU"


def inside(context: Context) -> dict[str, object]:
    """Boot, plug, ping, take turns."""
    words, rounds = base_and_number(context.options, ROUNDS)
    program, card = qemu_for(words), context.bdf(NIC)
    give_to_vfio(card)
    with Guest.start(GuestOptions(qemu=program)) as guest:
        guest.execute("device_add", driver="vfio-pci", host=str(card), id=DEVICE_ID)
        guest.load("e1000")
        interface = guest.wait_interface()
        set_network_up(guest, NETWORK, interface)
        ping(guest, NETWORK)
        flood = Flood(guest, NETWORK, STREAMS)
        flood.start()
        rates = _take_turns(context, guest, card, interface, rounds)
        pings = flood.stop()
        afterwards, held = ping(guest, NETWORK), is_held(card)
        qemu = guest.execute("query-version")
    return {
        "schema": "vfio-intx/lab-wirings/1",
        "qemu": qemu,
        "kernel": context.spec.kernel,
        "rounds": rounds,
        "rates": rates,
        "pings": pings.received,
        "lost_pings": pings.lost,
        "late_pings": pings.late,
        "driver_resets": pings.resets,
        "afterwards": {"sent": afterwards.sent, "received": afterwards.received, "held": held},
    }


def _take_turns(
    context: Context, guest: Guest, card: Bdf, interface: str, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """By wiring, the packets and the interrupts a second of each round."""
    wirings: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        BASE: lambda: _scheme(guest, "irqfd"),
        "irqfd by the agent": lambda: _given(guest, card),
        "ack-eventfd by QEMU": lambda: _scheme(guest, "ack-eventfd"),
        "trap by QEMU": lambda: _scheme(guest, "trap"),
        "the agent in the path": lambda: _tapped(guest, card),
    }
    rates: dict[str, dict[str, list[float]]] = {name: {"packets": [], "interrupts": []} for name in wirings}
    with HostCount(card) as host:
        for number in range(rounds):
            # Another one begins each time, so that a drift does not always favour the same.
            names = list(wirings)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                with wirings[name]():
                    first = host.now(), *_packets(guest, interface)
                    time.sleep(_WINDOW_S)
                    last = host.now(), *_packets(guest, interface)
                seconds = last[2] - first[2]
                rates[name]["packets"].append(round((last[1] - first[1]) / seconds, 1))
                rates[name]["interrupts"].append(round((last[0] - first[0]) / seconds, 1))
            said = ", ".join(f"{name} {values['packets'][-1]:.0f}" for name, values in rates.items())
            context.say(f"round {number + 1} of {rounds}, packets a second: {said}")
    return rates


def _packets(guest: Guest, interface: str) -> tuple[int, float]:
    """Packets received, and the guest's own clock at that moment in seconds."""
    text = guest.check(f"cat /sys/class/net/{interface}/statistics/rx_packets /proc/uptime")
    packets, uptime = text.split()[:2]
    return int(packets), float(uptime)


@contextlib.contextmanager
def _scheme(guest: Guest, scheme: str) -> Iterator[None]:
    guest.execute("qom-set", path=PATH, property=SCHEME, value=scheme)
    if intx_state(guest).eventfds is not Eventfds.QEMU:
        raise VerifyError(f"{scheme} by QEMU does not run on eventfds of QEMU: {intx_state(guest)}")
    yield
    guest.execute("qom-set", path=PATH, property=SCHEME, value="irqfd")


@contextlib.contextmanager
def _given(guest: Guest, card: Bdf) -> Iterator[None]:
    # As attach --direct does: QEMU has its copies, ours are closed.
    with connect(guest.qmp) as monitor, own_eventfds() as pair:
        hand_over(monitor, intx_state(guest), pair)
    if intx_state(guest).eventfds is not Eventfds.GIVEN:
        raise VerifyError(f"the eventfds of {card} were handed over and are not used: {intx_state(guest)}")
    yield
    guest.execute("qom-set", path=PATH, property="x-intx-eventfds", value="")


@contextlib.contextmanager
def _tapped(guest: Guest, card: Bdf) -> Iterator[None]:
    """A child of ours does what ``vfio-intx tap`` does, until it is killed; QEMU then goes back by itself."""
    pid = fork_tap(guest, card)
    try:
        entered = Deadline.after("the tap to enter", _ENTER_S)
        if not entered.poll(lambda: intx_state(guest).eventfds is Eventfds.GIVEN_ACK):
            raise VerifyError("the tap did not enter the path")
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    back = Deadline.after("QEMU to take over", _ENTER_S)
    if not back.poll(lambda: intx_state(guest).eventfds is Eventfds.QEMU):
        raise VerifyError("QEMU did not take over from the tap")


def failures(result: Mapping[str, Any]) -> list[str]:
    """What does not hold. No rate is judged: how long things take depends on the machine."""
    afterwards = result["afterwards"]
    found = [
        f"{name} carried no packet in round {number + 1}"
        for name, values in result["rates"].items()
        for number, rate in enumerate(values["packets"])
        if rate <= 0
    ]
    if result["lost_pings"]:
        found.append(f"{result['lost_pings']} pings were lost")
    if result["driver_resets"]:
        found.append(f"the guest's driver has reset the card {result['driver_resets']} times")
    if afterwards["held"] or afterwards["sent"] != afterwards["received"]:
        found.append(f"afterwards the line does not carry: {afterwards}")
    return found


def ratios(result: Mapping[str, Any]) -> dict[str, tuple[float, float, float, float]]:
    """By wiring: packets and interrupts a second (medians), the ratio of its packets to those of :data:`BASE` in the
    same round (median), and the spread of that ratio (half the distance of the quartiles).
    """
    base = result["rates"][BASE]["packets"]
    found = {}
    for name, values in result["rates"].items():
        each = sorted(mine / theirs for mine, theirs in zip(values["packets"], base, strict=True) if theirs)
        low, _, high = statistics.quantiles(each, n=4) if len(each) > 1 else (each[0],) * 3
        medians = statistics.median(values["packets"]), statistics.median(values["interrupts"])
        found[name] = (*medians, statistics.median(each), (high - low) / 2)
    return found


def show(result: Mapping[str, Any]) -> Iterable[str]:
    """A line for each wiring."""
    yield f"{result['rounds']} rounds of {_WINDOW_S:g} s each, {result['pings']} pings, {result['lost_pings']} lost"
    for name, (packets, interrupts, ratio, spread) in ratios(result).items():
        yield f"{name:<22} {packets:6.0f} packets/s {interrupts:6.0f} interrupts/s  x {ratio:.2f} +- {spread:.2f}"
