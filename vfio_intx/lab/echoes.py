"""Pings as the guest's own kernel counts them, which waits for no answer and so calls none lost that only comes late.

The ping of busybox gives up two round trips after its last request, a second at least (``sendping_tail`` in
networking/ping.c): on a machine that stands still for longer just then, it would report a loss where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_intx.deadline import Deadline
from vfio_intx.errors import VerifyError

if TYPE_CHECKING:
    from vfio_intx.lab.guests import Guest


def parse_echoes(text: str) -> tuple[int, int]:
    """Echo requests sent and replies received, from the ``Icmp:`` lines. :raise VerifyError: if they are not there."""
    rows = [line.split() for line in text.splitlines() if line.startswith("Icmp:")]
    if len(rows) == 2 and len(rows[0]) == len(rows[1]):
        values = dict(zip(*rows, strict=True))
        if "OutEchos" in values and "InEchoReps" in values:
            return int(values["OutEchos"]), int(values["InEchoReps"])
    raise VerifyError(f"the guest's /proc/net/snmp tells of no echoes: {text[:200]!r}")


class Echoes:
    """What the guest has sent and received since this was made, through all its interfaces."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._before = self._read()

    def _read(self) -> tuple[int, int]:
        return parse_echoes(self._guest.check("grep ^Icmp: /proc/net/snmp"))

    def counted(self) -> tuple[int, int]:
        """Requests sent and replies received so far."""
        now = self._read()
        return now[0] - self._before[0], now[1] - self._before[1]

    def settled(self, seconds: float) -> tuple[int, int]:
        """The same once every request is answered, or after so many *seconds*: what is missing then is lost."""

        def complete() -> bool:
            sent, received = self.counted()
            return received >= sent

        Deadline.after("the last answer", seconds).poll(complete)
        return self.counted()
