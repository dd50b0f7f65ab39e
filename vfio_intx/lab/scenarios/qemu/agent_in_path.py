"""Our process in the EOI path of a live line under traffic, killed at a hundred random moments: the line goes on.

First the line runs under each wiring for a while, ours and QEMU's, for the rates; then ``vfio-intx tap`` enters the
path and is killed with SIGKILL after a random time, again and again. QEMU has to take over each time, and the line to
carry on. Words after ``--``: the QEMU base, and how many kills.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
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
from vfio_intx.lab.scenarios.qemu.switch_under_load import NETWORK, NIC, STREAMS, STUCK_S
from vfio_intx.lab.spec import LabSpec
from vfio_intx.names import Bdf
from vfio_intx.qemu import replies
from vfio_intx.qemu.intx_state import SCHEME, Eventfds, IntxState, LiveScheme

SPEC = LabSpec(kernels.DEFAULT, (NIC,))
DEADLINE_S = 1800.0

KILLS = 100
#: QEMU's main loop hears of the leash; on a machine as slow as the lab it may be busy. This is the promise.
FALL_BACK_S = 1.0
_LONGEST_LIFE_S = 0.4
_ENTER_S = 30.0
_RATE_S = 5.0
_PATH = "/machine/peripheral/nic"


def inside(context: Context) -> dict[str, object]:
    """Boot, attach with eventfds of ours, ping, compare, kill."""
    words, kills = _options(context.options)
    card = context.bdf(NIC)
    give_to_vfio(card)
    with Guest.start(GuestOptions(qemu=qemu_for(words))) as guest:
        attached = _attach(context, guest, card)
        guest.load("e1000")
        interface = guest.wait_interface()
        set_network_up(guest, NETWORK, interface)
        ping(guest, NETWORK)
        if _state(guest).scheme is not LiveScheme.IRQFD:
            raise VerifyError(f"the line does not run irqfd on eventfds of ours: {_state(guest)}")
        start_pings(guest, NETWORK, STREAMS)
        rates = _rates(context, guest, card)
        before = host_count(card), guest.interrupt_count(interface)
        deaths = _kill(context, guest, card, kills)
        pings = stop_pings(guest, STREAMS)
        Deadline.after("the last interrupt", 5.0).poll(lambda: not is_held(card))
        after = host_count(card), guest.interrupt_count(interface)
        last, held = ping(guest, NETWORK), is_held(card)
    # A stream that is interrupted between request and answer counts one that was never lost.
    lost = max(0, sum(one.sent - one.received for one in pings) - STREAMS)
    taken = sorted(deaths)
    result: dict[str, object] = {
        "schema": "vfio-intx/lab-agent-in-path/1",
        "attached_with": attached,
        "rates": rates,
        "kills": len(taken),
        "fall_back_ms": {"p50": taken[len(taken) // 2] * 1000, "max": taken[-1] * 1000},
        "lost_pings": lost,
        "pings": sum(one.received for one in pings),
        "slowest_ping_ms": max(one.slowest_ms for one in pings),
        "interrupts": {"host": after[0] - before[0], "guest": after[1] - before[1]},
    }
    context.say(str(result))
    if lost or held or last.received != last.sent or len(taken) != kills or taken[-1] > FALL_BACK_S:
        raise VerifyError(f"not every death went unnoticed: {result}, afterwards {last}, held {held}")
    if after[1] - before[1] < after[0] - before[0]:
        raise VerifyError(f"the guest handled fewer interrupts than the host counted: {result}")
    return result


def _options(words: Iterable[str]) -> tuple[tuple[str, ...], int]:
    """The QEMU base and the number of kills among the words, in any order."""
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(numbers) > 1:
        raise UsageError("say once how many kills")
    return tuple(word for word in words if not word.isdecimal()), numbers[0] if numbers else KILLS


def _attach(context: Context, guest: Guest, card: Bdf) -> str:
    ran = context.vfio_intx(
        "attach", str(card), "--qmp", str(guest.qmp), "--direct", "--id", "nic", "--prove", "0.1", "--json"
    )
    if ran.returncode:
        raise VerifyError(f"attach --direct failed: {ran.stderr.strip()}")
    told = _state(guest).eventfds
    if told is not Eventfds.GIVEN:
        raise VerifyError(f"attached directly, but QEMU uses eventfds of {told.value!r}")
    return str(told.value)


def _state(guest: Guest) -> IntxState:
    reply = guest.execute("qom-get", path=_PATH, property="x-intx-state")
    return replies.parse(reply, IntxState, "qom-get", "the lab's monitor")


def _rates(context: Context, guest: Guest, card: Bdf) -> dict[str, object]:
    """Interrupts a second under the same pings: wired by us, by QEMU three ways, and with our process in the path."""
    rates: dict[str, object] = {"irqfd, eventfds of the agent": _rate(card)}
    for scheme in ("irqfd", "ack-eventfd", "trap"):
        guest.execute("qom-set", path=_PATH, property=SCHEME, value=scheme)
        if scheme == "irqfd":
            guest.execute("qom-set", path=_PATH, property="x-intx-eventfds", value="")
        rates[f"{scheme}, QEMU"] = _rate(card)
    guest.execute("qom-set", path=_PATH, property=SCHEME, value="irqfd")
    argv = ("tap", str(card), "--qmp", str(guest.qmp), "--seconds", str(_RATE_S), "--json")
    first, begun = host_count(card), time.monotonic()
    ran = context.vfio_intx(*argv)
    seconds, counted = time.monotonic() - begun, host_count(card) - first
    if ran.returncode:
        raise VerifyError(f"tap failed: {ran.stderr.strip()}")
    tapped = json.loads(ran.stdout)
    if tapped["ended"] != "time" or tapped["refused"] or not tapped["eois"]:
        raise VerifyError(f"the tap did not do its work: {tapped}")
    rates["the agent in the path"] = tapped["unmasks"] / tapped["seconds"]
    rates["tap"] = tapped
    context.say(f"interrupts a second: {rates}; {counted} in {seconds:.1f} s around the tap")
    if _state(guest).eventfds is not Eventfds.QEMU:
        raise VerifyError("the tap has left, but QEMU does not use its own eventfds")
    return rates


def _rate(card: Bdf) -> float:
    first, begun = host_count(card), time.monotonic()
    time.sleep(_RATE_S)
    return (host_count(card) - first) / (time.monotonic() - begun)


def _kill(context: Context, guest: Guest, card: Bdf, kills: int) -> list[float]:
    """How long QEMU took each time to be in charge again, in seconds."""
    chance = random.Random(kills)
    # Before the guest, which takes all of L1's one CPU: starting an interpreter beside it takes a quarter of a minute.
    argv = ["nice", "-n", "-15", sys.executable, "-m", "vfio_intx", "tap", str(card)]
    argv += ["--qmp", str(guest.qmp), "--timeout", str(_ENTER_S)]
    taken: list[float] = []
    for number in range(kills):
        tap = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            entered = Deadline.after("the tap to enter", _ENTER_S)
            if not entered.poll(lambda: _state(guest).eventfds is Eventfds.GIVEN_ACK):
                raise VerifyError(f"the tap did not enter the path (kill {number})")
            time.sleep(chance.uniform(0, _LONGEST_LIFE_S))
        finally:
            tap.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            tap.communicate()
        back = Deadline.after("QEMU to take over", STUCK_S)
        if not back.poll(lambda: _state(guest).eventfds is Eventfds.QEMU):
            raise VerifyError(f"QEMU did not take over after kill {number}")
        taken.append(time.monotonic() - killed)
        if wait_progress(card, host_count(card), STUCK_S) is None:
            raise VerifyError(f"the line stands still after kill {number}")
        if (number + 1) % 10 == 0:
            context.say(f"{number + 1} kills, the slowest take-over {max(taken) * 1000:.0f} ms")
    return taken


def show(result: Mapping[str, object]) -> Iterable[str]:
    """The rates, then what the kills came to."""
    rates = result["rates"]
    assert isinstance(rates, dict)
    for name, rate in rates.items():
        if isinstance(rate, float):
            yield f"{name:<30} {rate:8.0f} interrupts a second"
    yield f"killed {result['kills']} times: QEMU took over within {result['fall_back_ms']} ms"
    yield f"{result['pings']} pings answered, {result['lost_pings']} lost, interrupts {result['interrupts']}"
