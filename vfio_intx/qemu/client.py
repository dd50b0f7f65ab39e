"""The QMP client beneath :mod:`vfio_intx.qemu.monitor`: QEMU's own, with two things of ours.

It does not print every message for a log that nobody reads, and it sends several commands before the first answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

from qemu.qmp import ExecuteError, Message, QMPClient
from qemu.qmp.error import ProtocolError

from vfio_intx.errors import PeerGarbage, PeerRefused, PeerTimeout
from vfio_intx.names import escape

#: Commands under way at once. QEMU itself takes as many before it stops reading (QMP_REQ_QUEUE_LEN_MAX in
#: monitor/qmp.c), so more would only lie in the socket.
MOST_UNDER_WAY = 8
#: Most bytes that the answers to several commands may have in all.
MOST_BYTES = 32 << 20
_LONGEST_WORDS = 1024


class Client(QMPClient):
    """A QMPClient whose hooks for logging, which format each message whether a log wants it or not, do nothing."""

    _room: int | None = None

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        if self._room is not None and "event" not in msg:
            self._room -= len(bytes(msg))
            if self._room < 0:
                raise ProtocolError(f"its answers to a few questions have more than {MOST_BYTES >> 20} MiB")
        return msg

    async def execute_all(
        self, name: str, commands: Sequence[tuple[str, Mapping[str, object] | None]], budget_s: float
    ) -> list[object | PeerRefused]:
        """What each command returns or is refused with, in their order; at most :data:`MOST_UNDER_WAY` are unanswered.

        QEMU executes the commands of a monitor one after the other, so each has *budget_s* from the answer before its
        own. The client reads while it writes: a peer that answers before it reads on blocks nobody. Answers of more
        than :data:`MOST_BYTES` in all break the connection.

        :raise PeerTimeout: one was not answered in time; that it or a later one ran is unknown. Late answers are
            dropped by their ids. :raise PeerGarbage: as :func:`refusal` does. :raise Exception: as
            ``execute`` does, where the connection is of no more use.
        """
        under_way: deque[tuple[str, asyncio.Task[object]]] = deque()
        answers: list[object | PeerRefused] = []
        self._room = MOST_BYTES
        try:
            for command, arguments in commands:
                if len(under_way) == MOST_UNDER_WAY:
                    answers.append(await _answer(name, *under_way[0], budget_s))
                    under_way.popleft()
                under_way.append((command, asyncio.create_task(self.execute(command, arguments))))
            while under_way:
                answers.append(await _answer(name, *under_way[0], budget_s))
                under_way.popleft()
        finally:
            self._room = None
            for _, task in under_way:
                task.cancel()
            # What they end with is that of the first, which is on its way to the caller.
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        return answers


async def _answer(name: str, command: str, task: asyncio.Task[object], budget_s: float) -> object | PeerRefused:
    try:
        async with asyncio.timeout(budget_s):
            return await task
    except ExecuteError as error:
        return refusal(name, command, error)
    except TimeoutError as error:
        raise PeerTimeout(name, command, budget_s) from error


def refusal(name: str, command: str, error: ExecuteError) -> PeerRefused:
    """The error that QEMU answered a command with, as ours. :raise PeerGarbage: there is a result beside it."""
    if "return" in error.received:
        raise PeerGarbage(f"{name} answered {command} with both a result and an error") from error
    return PeerRefused(command, escape(error.error_class)[:64], escape(str(error))[:_LONGEST_WORDS])
