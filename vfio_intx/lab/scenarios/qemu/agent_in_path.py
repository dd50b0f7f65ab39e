"""Our process in the EOI path of a live line under traffic, killed at a hundred random moments: the line goes on.

``vfio-intx tap`` enters the path, serves, and is killed with SIGKILL after a random time, again and again. QEMU has to
take over each time, and the line to carry on. The first taps are started as a user starts them; the others are forked
from this process, which has their modules loaded: the moment of death is what matters, not the start of an interpreter.
Words after ``--``: the QEMU base, and how many kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from vfio_intx.deadline import Deadline
from vfio_intx.errors import VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.live_line import (
    DEVICE_ID,
    NETWORK,
    NIC,
    STREAMS,
    STUCK_S,
    HostCount,
    Witnesses,
    base_and_number,
    fork_tap,
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
from vfio_intx.names import Bdf
from vfio_intx.qemu.intx_state import Eventfds

SPEC = LabSpec(kernels.DEFAULT, (NIC,))
DEADLINE_S = 3600.0

KILLS = 100
#: Of them, so many are programs of their own, started as a user would.
_PROGRAMS = 3
#: QEMU's main loop hears of the leash; on a machine as slow as the lab it may be busy. This is the promise.
FALL_BACK_S = 1.0
_LONGEST_LIFE_S = 0.4
_ENTER_S = 60.0


def inside(context: Context) -> dict[str, object]:
    """Boot, plug, ping, kill, count; whether that holds is for :func:`failures` to say."""
    words, kills = base_and_number(context.options, KILLS)
    program, card = qemu_for(words), context.bdf(NIC)
    give_to_vfio(card)
    with Guest.start(GuestOptions(qemu=program)) as guest:
        guest.execute("device_add", driver="vfio-pci", host=str(card), id=DEVICE_ID)
        guest.load("e1000")
        interface = guest.wait_interface()
        set_network_up(guest, NETWORK, interface)
        ping(guest, NETWORK)
        with Witnesses(guest, card, interface) as witnesses:
            before = witnesses.read()
            flood = Flood(guest, NETWORK, STREAMS)
            flood.start()
            deaths = _kill(context, guest, card, kills)
            pings = flood.stop()
            counted = witnesses.read().since(before)
        afterwards, held, last = ping(guest, NETWORK), is_held(card), intx_state(guest)
        qemu = guest.execute("query-version")
    return {
        "schema": "vfio-intx/lab-agent-in-path/2",
        "qemu": qemu,
        "kernel": context.spec.kernel,
        "asked": kills,
        **_deaths(deaths),
        "pings": pings.received,
        "lost_pings": pings.lost,
        "late_pings": pings.late,
        "driver_resets": pings.resets,
        "slowest_ping_ms": pings.slowest_ms,
        "interrupts": counted.as_json(),
        "eventfds": last.eventfds.value,
        "afterwards": {"sent": afterwards.sent, "received": afterwards.received, "held": held},
    }


def _deaths(deaths: list[tuple[float, bool]]) -> dict[str, object]:
    taken = sorted(seconds for seconds, _ in deaths)
    return {
        "kills": len(taken),
        "stuck": sum(not moved for _, moved in deaths),
        "fall_back_ms": {
            "p50": round(taken[len(taken) // 2] * 1000, 1),
            "p99": round(taken[min(len(taken) - 1, len(taken) * 99 // 100)] * 1000, 1),
            "max": round(taken[-1] * 1000, 1),
        },
    }


def _kill(context: Context, guest: Guest, card: Bdf, kills: int) -> list[tuple[float, bool]]:
    """For each death: how long until QEMU was in charge again, in seconds, and whether the line went on."""
    chance = random.Random(kills)
    deaths: list[tuple[float, bool]] = []
    told = time.monotonic()
    with HostCount(card) as host:
        for number in range(kills):
            pid = _start_program(guest, card) if number < _PROGRAMS else fork_tap(guest, card)
            try:
                entered = Deadline.after("the tap to enter", _ENTER_S)
                if not entered.poll(lambda: intx_state(guest).eventfds is Eventfds.GIVEN_ACK):
                    raise VerifyError(f"the tap did not enter the path (kill {number})")
                time.sleep(chance.uniform(0, _LONGEST_LIFE_S))
            finally:
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                ended = os.waitpid(pid, 0)[1]
            if not os.WIFSIGNALED(ended):
                raise VerifyError(f"the tap had ended by itself before kill {number}, with {ended:#x}")
            back = Deadline.after("QEMU to take over", STUCK_S)
            if not back.poll(lambda: intx_state(guest).eventfds is Eventfds.QEMU):
                raise VerifyError(f"QEMU did not take over after kill {number}")
            seconds = time.monotonic() - killed
            deaths.append((seconds, host.moves(host.now())))
            if not deaths[-1][1]:
                context.say(f"kill {number}: the line stands still")
            if (now := time.monotonic()) - told > 15:
                told = now
                slowest = max(taken for taken, _ in deaths)
                context.say(f"{number + 1} of {kills} kills, the slowest take-over {slowest * 1000:.0f} ms")
    return deaths


def _start_program(guest: Guest, card: Bdf) -> int:
    # Before the guest, which takes all of L1's one CPU: starting an interpreter beside it takes a quarter of a minute.
    argv = ["nice", "-n", "-15", sys.executable, "-m", "vfio_intx", "tap", str(card), "--qmp", str(guest.qmp)]
    return os.spawnvp(os.P_NOWAIT, argv[0], argv)


def failures(result: Mapping[str, Any]) -> list[str]:
    """What does not hold."""
    counted, afterwards, slowest = result["interrupts"], result["afterwards"], result["fall_back_ms"]["max"]
    missed = counted["host"] - counted["guest"]
    checks = {
        f"{result['kills']} kills instead of {result['asked']}": result["kills"] == result["asked"],
        f"the line stood still after {result['stuck']} of them": result["stuck"] == 0,
        f"QEMU took {slowest} ms to take over": slowest <= FALL_BACK_S * 1000,
        f"{result['lost_pings']} pings were lost": result["lost_pings"] == 0,
        f"the guest's driver has reset the card {result['driver_resets']} times": result["driver_resets"] == 0,
        f"only {result['pings']} pings went through": result["pings"] >= result["kills"],
        # Each kill has two re-wirings, each of which may take back one interrupt that then fires again.
        f"the guest has {missed} interrupts fewer than the host": missed <= 2 * result["kills"],
        f"/proc/interrupts and the tracepoint disagree: {counted}": counted["host"] == counted["traced"],
        f"at the end the eventfds are {result['eventfds']}'s": result["eventfds"] == Eventfds.QEMU.value,
        f"afterwards {afterwards['received']} of {afterwards['sent']} pings came back": (
            afterwards["sent"] == afterwards["received"]
        ),
        "afterwards the card is held": not afterwards["held"],
    }
    return [complaint for complaint, holds in checks.items() if not holds]


def show(result: Mapping[str, Any]) -> Iterable[str]:
    """What the kills came to."""
    counted, back = result["interrupts"], result["fall_back_ms"]
    yield f"{result['kills']} of {result['asked']} kills, {result['stuck']} stuck"
    yield f"QEMU took over after p50 {back['p50']} ms, p99 {back['p99']} ms, at most {back['max']} ms"
    yield f"{result['pings']} pings answered, {result['lost_pings']} lost, {result['late_pings']} late"
    yield f"the slowest took {result['slowest_ping_ms']} ms; {result['driver_resets']} resets by the guest's driver"
    yield f"interrupts: host {counted['host']}, guest {counted['guest']}, acknowledged {counted['acks']}"
