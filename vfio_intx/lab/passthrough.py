"""What the QEMU scenarios share, in L1: a card with vfio-pci, a QEMU of ours, a guest that pings without a pause."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.abi.pciconf import ConfigSpace
from vfio_intx.deadline import Deadline
from vfio_intx.errors import UsageError, VerifyError
from vfio_intx.host.irq import read_interrupts, vfio_action
from vfio_intx.host.root import HostRoot
from vfio_intx.lab.build_qemu import BASES, DEFAULT_BASE, require_built
from vfio_intx.lab.echoes import Echoes, parse_echoes
from vfio_intx.lab.guests import Guest
from vfio_intx.lab.spec import UserNetwork
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import LocalMachine
from vfio_intx.wiring.drivers import bind

_STATE_DIR = Path("/var/lib/vfio-intx")
_PING_END = re.compile(r"(\d+) packets transmitted, (\d+) packets received")
_ROUND = 200
#: An answer that has not come so long after the last request is lost.
_LAST_ANSWER_S = 30.0
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
    """What a run of pings came to; ``slowest_ms`` is the longest round trip.

    ``late`` are those whose answer came after the program had given up waiting, a second or so after the last request
    of a round: the guest's kernel has counted them all the same, so they are not lost. ``resets`` is how often the
    guest's driver has reset the card, because nothing it sent was reported as sent for five seconds (``dev_watchdog``
    in net/sched/sch_generic.c): what was in its rings is then lost or sent again, and the counts of echoes are void.
    """

    sent: int
    received: int
    slowest_ms: float
    late: int = 0
    resets: int = 0

    @property
    def lost(self) -> int:
        """Those without an answer."""
        return self.sent - self.received


def set_network_up(guest: Guest, network: UserNetwork, interface: str) -> None:
    """Give *interface* the guest's address on *network*."""
    guest.check(f"ip addr add {network.address} dev {interface} && ip link set {interface} up")


class Flood:
    """Pings as fast as their answers come, in the background of a guest, from :meth:`start` to :meth:`stop`.

    What was sent and answered is counted by the guest's kernel (``Icmp:`` in ``/proc/net/snmp``): the ping of busybox
    gives up too soon for a machine as slow as the lab, and would call an answer lost that only came late.
    """

    def __init__(self, guest: Guest, network: UserNetwork, streams: int) -> None:
        self._guest, self._network, self._streams = guest, network, streams
        self._before = (0, 0)
        self._resets = 0

    def start(self) -> None:
        """Begin."""
        self._guest.check("rm -f /tmp/stop /tmp/end*")
        self._before, self._resets = self._echoes(), self._all_resets()
        for number in range(self._streams):
            ping_round = f"ping -A -q -c {_ROUND} -W 30 -s {56 + number} {self._network.gateway}"
            self._guest.check(
                f"(while [ ! -e /tmp/stop ]; do {ping_round}; done > /tmp/ping{number} 2>&1; touch /tmp/end{number}) &"
            )

    def stop(self) -> Pings:
        """Let the rounds end, wait for answers that are still on their way, add up."""
        self._guest.check("touch /tmp/stop")
        told = []
        for number in range(self._streams):
            self._guest.check(f"while [ ! -e /tmp/end{number} ]; do sleep 0.1; done", 120)
            # Thousands of lines would take minutes through the guest's serial port.
            told.append(parse_pings(self._guest.check(f"awk -F '[ /]' '{_ADD_UP}' /tmp/ping{number}")))
        Deadline.after("the last answer", _LAST_ANSWER_S).poll(lambda: not self._counted().lost)
        counted = self._counted()
        late = sum(one.lost for one in told) - counted.lost
        resets = self._all_resets() - self._resets
        return Pings(counted.sent, counted.received, max(one.slowest_ms for one in told), late, resets)

    def _counted(self) -> Pings:
        sent, received = self._echoes()
        return Pings(sent - self._before[0], received - self._before[1], 0.0)

    def _all_resets(self) -> int:
        return int(self._guest.run("dmesg | grep -c 'Reset adapter'").text)

    def _echoes(self) -> tuple[int, int]:
        return parse_echoes(self._guest.check("grep ^Icmp: /proc/net/snmp"))


def ping(guest: Guest, network: UserNetwork, count: int = 5, seconds: int = 30) -> Pings:
    """*count* pings, a fifth of a second apart; their answers are waited for at most *seconds* after the last one."""
    echoes = Echoes(guest)
    told = parse_pings(guest.run(f"ping -q -c {count} -i 0.2 -W {seconds} {network.gateway}", seconds + 120.0).text)
    sent, received = echoes.settled(seconds)
    return Pings(sent, received, told.slowest_ms, received - told.received)


def parse_pings(text: str) -> Pings:
    """busybox ping's summary. :raise VerifyError: if there is none."""
    found = _PING_END.search(text)
    if found is None:
        raise VerifyError(f"ping in the guest ended without a summary: {text[-200:]!r}")
    times = _PING_TIMES.search(text)
    return Pings(int(found[1]), int(found[2]), float(times[1]) if times else 0.0)
