"""What the QEMU scenarios share, in L1: a card with vfio-pci, a QEMU of ours, a guest that pings without a pause."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.abi.pciconf import ConfigSpace
from vfio_intx.errors import UsageError, VerifyError
from vfio_intx.host.irq import read_interrupts, vfio_action
from vfio_intx.host.root import HostRoot
from vfio_intx.lab.build_qemu import BASES, DEFAULT_BASE, require_built
from vfio_intx.lab.guests import Guest
from vfio_intx.lab.spec import UserNetwork
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import LocalMachine
from vfio_intx.wiring.drivers import bind

_STATE_DIR = Path("/var/lib/vfio-intx")
_PING_END = re.compile(r"(\d+) packets transmitted, (\d+) packets received")
_ROUND = 200
#: awk: several summaries of busybox ping as one, in the same words; fields end at blanks and slashes.
_ADD_UP = (
    "/packets transmitted/ {sent += $1; received += $4} /min.avg.max/ {if ($8 + 0 > most) most = $8 + 0} "
    'END {print sent + 0 " packets transmitted, " received + 0 " packets received"; '
    'print "round-trip min/avg/max = 0/0/" most + 0 " ms"}'
)
_PING_TIMES = re.compile(r"min/avg/max = [0-9.]+/[0-9.]+/([0-9.]+) ms")


def base_of(words: Iterable[str]) -> str:
    """The QEMU base that the words after ``--`` name; the default one without any. :raise UsageError: for others."""
    chosen = list(words) or [DEFAULT_BASE]
    if len(chosen) != 1 or chosen[0] not in BASES:
        raise UsageError("the scenario takes one word, the QEMU base", hint="one of " + ", ".join(BASES))
    return chosen[0]


def qemu_for(words: Iterable[str], *, stock: bool = False) -> str:
    """The program built from the base that *words* name, with the series or without (*stock*).

    :raise MissingError: if it has not been built, with the command that does.
    """
    return str(require_built(base_of(words), stock=stock).program)


def give_to_vfio(*cards: Bdf, force: bool = False) -> None:
    """Bind each card to vfio-pci. :raise WorldError: as ``bind`` does, without *force* also for one without a pin."""
    bind(LocalMachine(), _STATE_DIR, list(cards), force=force)


def host_count(card: Bdf) -> int:
    """Interrupts on the host line that vfio handles for *card*. :raise VerifyError: if it handles none."""
    wanted = vfio_action(card)
    for line in (read_interrupts(HostRoot()).value or {}).values():
        if wanted in line.actions:
            return line.count
    raise VerifyError(f"vfio has no INTx handler for {card}")


def is_held(card: Bdf) -> bool:
    """Whether the card asserts its interrupt and is masked at the same moment: normal for a while, stuck for long."""
    raw = Path(f"/sys/bus/pci/devices/{card}/config").read_bytes()
    config = ConfigSpace(raw)
    return config.intx_disabled and config.intx_asserted


@dataclass(frozen=True, slots=True)
class Pings:
    """What a run of pings came to; ``slowest_ms`` is the longest round trip."""

    sent: int
    received: int
    slowest_ms: float


def set_network_up(guest: Guest, network: UserNetwork, interface: str) -> None:
    """Give *interface* the guest's address on *network*."""
    guest.check(f"ip addr add {network.address} dev {interface} && ip link set {interface} up")


def start_pings(guest: Guest, network: UserNetwork, streams: int = 1) -> None:
    """Ping as fast as answers come, in the background, until :func:`stop_pings`."""
    guest.check("rm -f /tmp/stop")
    for number in range(streams):
        # In rounds that wait for their last answer: at the end, nothing that was sent is still on its way.
        ping_round = f"ping -A -q -c {_ROUND} -W 10 -s {56 + number} {network.gateway}"
        guest.check(
            f"(while [ ! -e /tmp/stop ]; do {ping_round}; done > /tmp/ping{number} 2>&1; touch /tmp/end{number}) &"
        )


def stop_pings(guest: Guest, streams: int = 1) -> list[Pings]:
    """End what :func:`start_pings` started and read what came of it."""
    guest.check("touch /tmp/stop")
    found = []
    for number in range(streams):
        guest.check(f"while [ ! -e /tmp/end{number} ]; do sleep 0.1; done", 120)
        # Thousands of lines would take minutes through the guest's serial port.
        found.append(parse_pings(guest.check(f"awk -F '[ /]' '{_ADD_UP}' /tmp/ping{number}")))
    return found


def ping(guest: Guest, network: UserNetwork, count: int = 5, seconds: int = 10) -> Pings:
    """*count* pings, a fifth of a second apart, all within *seconds*."""
    text = guest.run(f"ping -q -c {count} -i 0.2 -w {seconds} {network.gateway}", seconds + 10).text
    return parse_pings(text)


def parse_pings(text: str) -> Pings:
    """busybox ping's summary. :raise VerifyError: if there is none."""
    found = _PING_END.search(text)
    if found is None:
        raise VerifyError(f"ping in the guest ended without a summary: {text[-200:]!r}")
    times = _PING_TIMES.search(text)
    return Pings(int(found[1]), int(found[2]), float(times[1]) if times else 0.0)
