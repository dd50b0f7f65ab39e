"""The demo's table on a patched QEMU: also wired by our program, and with our program hearing each EOI.

Each card goes through five wirings with traffic: ``irqfd`` by QEMU, ``ack-eventfd`` and ``trap`` after a live switch,
``irqfd`` again with ``vfio-intx tap`` in the path, and ``irqfd`` on eventfds of ``vfio-intx attach --direct``. The word
after ``--`` is the QEMU base.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from vfio_intx.deadline import Deadline
from vfio_intx.errors import VerifyError
from vfio_intx.lab import demo_rows
from vfio_intx.lab.demo_rows import BY_AGENT, IN_PATH, Row
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.passthrough import qemu_for
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.scenarios import demo
from vfio_intx.lab.traffic import Pings, SerialLines, Traffic
from vfio_intx.names import Bdf
from vfio_intx.qemu import replies
from vfio_intx.qemu.intx_state import QUERY, Eventfds, IntxState

SPEC = demo.SPEC
DEADLINE_S = 1200.0

#: A monitor for each tap: it keeps its connection for as long as it is in the path.
_TAP_MONITORS = tuple(Path(f"/run/vfio-intx-tap{number}") for number in range(len(SPEC.cards)))
_ENTER_S = 60.0
_ROWS = 5 * len(SPEC.cards)

outside = demo.outside


def inside(context: Context) -> dict[str, object]:
    """The rows, whether they hold or not."""
    cards: dict[Bdf, Traffic] = {context.bdf(demo.NIC): Pings(demo.NETWORK), context.bdf(demo.SERIAL): SerialLines()}
    monitors = [word for path in _TAP_MONITORS for word in ("-qmp", f"unix:{path},server=on,wait=off")]
    options = GuestOptions(qemu=qemu_for(context.options), extra=(*demo.GUEST.extra, *monitors))
    for bdf in cards:
        demo.verb(context, "bind", str(bdf))
    with Guest.start(options) as guest:
        demo.attach_all(context, guest, cards, "irqfd")
        lines = demo.measure(context, guest, cards, "irqfd")
        for scheme in ("ack-eventfd", "trap"):
            _switch(context, guest, cards, scheme)
            lines += demo.measure(context, guest, cards, scheme)
        _switch(context, guest, cards, "irqfd")
        tapped, taps = _tapped(context, guest, cards)
        lines += tapped
        demo.detach_all(context, guest, cards)
        demo.attach_all(context, guest, cards, "irqfd", "--direct")
        _expect(guest, Eventfds.GIVEN)
        lines += [replace(row, wiring=BY_AGENT) for row in demo.measure(context, guest, cards, "irqfd")]
        demo.detach_all(context, guest, cards)
        qemu = guest.execute("query-version")
    return {
        "schema": "vfio-intx/lab-qemu-demo/1",
        "qemu": qemu,
        "kernel": context.spec.kernel,
        "lines": lines,
        "taps": taps,
        "left_behind": [],
        "phases_s": {},
    }


def _switch(context: Context, guest: Guest, cards: Iterable[Bdf], scheme: str) -> None:
    for bdf in cards:
        said = demo.verb(context, "switch", str(bdf), scheme, "--qmp", str(guest.qmp), "--prove", "0.1", "--json")
        context.say(f"switched {bdf} from {said['before']} to {said['now']} in {said['milliseconds']:.0f} ms")


def _states(guest: Guest) -> list[IntxState]:
    return replies.parse(guest.execute(QUERY), list[IntxState], QUERY, "the lab's monitor")


def _expect(guest: Guest, eventfds: Eventfds) -> None:
    wrong = [state for state in _states(guest) if state.eventfds is not eventfds]
    if wrong:
        raise VerifyError(f"every line should use eventfds of {eventfds.value!r}: {wrong}")


def _tapped(
    context: Context, guest: Guest, cards: Mapping[Bdf, Traffic]
) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """The rows with a tap in every line; wake-ups are the tap's, which the trace of QEMU's threads cannot see."""
    with _taps(guest, list(cards)) as running:
        entered = Deadline.after("the taps to enter", _ENTER_S)
        if not entered.poll(lambda: all(state.eventfds is Eventfds.GIVEN_ACK for state in _states(guest))):
            raise VerifyError(f"not every tap entered its path: {_states(guest)}")
        lines = demo.measure(context, guest, cards, "irqfd")
        said = {bdf: _leave(one) for bdf, one in running.items()}
    _expect(guest, Eventfds.QEMU)
    rows = []
    for row in lines:
        tally = said[row.device]
        context.say(f"the tap of {row.device}: {tally}")
        wakeups = round(tally["wakeups"] / tally["eois"], 3) if tally["eois"] else None
        rows.append(replace(row, wiring=IN_PATH, wakeups_per_interrupt=wakeups))
    return rows, said


@contextlib.contextmanager
def _taps(guest: Guest, cards: Sequence[Bdf]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A tap for each card; those that still run at the end are killed."""
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for bdf, path in zip(cards, _TAP_MONITORS, strict=True):
            argv = [sys.executable, "-m", "vfio_intx", "tap", str(bdf), "--qmp", str(path), "--json"]
            running[str(bdf)] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        yield running
    finally:
        for one in running.values():
            if one.poll() is None:
                one.kill()
                one.communicate()


def _leave(tap: subprocess.Popen[str]) -> dict[str, Any]:
    """Have the tap leave the path; what it counted. :raise VerifyError: with what it said, if it failed."""
    tap.send_signal(signal.SIGINT)
    output, said = tap.communicate(timeout=_ENTER_S)
    if tap.returncode:
        raise VerifyError(f"the tap ended with {tap.returncode}: {said.strip()[-800:]}")
    found: dict[str, Any] = json.loads(output)
    return found


def failures(result: Mapping[str, Any]) -> list[str]:
    """What does not hold of the rows, and of what the taps counted."""
    found = demo_rows.failures(result, _ROWS)
    for row in demo_rows.rows(result):
        if row.wiring == IN_PATH:
            tally = result["taps"][row.device]
            if tally["ended"] != "stopped" or tally["refused"]:
                found.append(f"the tap of {row.device} did not do its work: {tally}")
            if tally["eois"] < row.host_interrupts:
                found.append(f"the tap of {row.device} heard {tally['eois']} EOIs of {row.host_interrupts} interrupts")
    return found


def show(result: Mapping[str, Any]) -> Iterable[str]:
    """The demo's table. What each wiring costs beside the others is for ``qemu/wirings``: here they run one by one."""
    version = result["qemu"]["qemu"]
    yield from demo_rows.table(
        result,
        f"QEMU {version['major']}.{version['minor']}.{version['micro']} with the series, kernel {result['kernel']}",
    )
