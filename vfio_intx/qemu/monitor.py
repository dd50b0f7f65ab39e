"""A QMP monitor as an untrusted peer, behind a small synchronous interface.

Every wait has a named deadline. Whatever the other side does ends in one of the ``Peer…`` errors: it never greets, it
greets by halves, it sends garbage, JSON nested without end or a line without end, it answers with both a result and an
error, it stops, it dies. Nothing here rests on ``assert``, so ``python -O`` changes nothing.

Built on :class:`qemu.qmp.QMPClient` (:mod:`vfio_intx.qemu.client`), three of whose traits are worked around with its
public means only: it validates the negotiation by ``assert`` (so we negotiate ourselves), it keeps every event for
ever (so our event filter takes them into a bounded queue and keeps the client from storing any), and its
``disconnect()`` can hang on a peer that does not read (so we hold the socket and shut it down).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, PeerError, PeerGarbage, PeerGone, PeerRefused, PeerTimeout
from vfio_intx.names import escape
from vfio_intx.qemu import replies

if TYPE_CHECKING:
    from qemu.qmp import Message

    from vfio_intx.qemu.client import Client

T = TypeVar("T")

#: A command and its arguments.
Question = tuple[str, Mapping[str, object] | None]

#: How long one command may take unless told otherwise, in seconds.
DEFAULT_BUDGET_S = 10.0
#: Longest line that is read, in bytes. A longer one is garbage; ``info qtree`` of a big machine is some 100 KiB.
LONGEST_LINE = 8 << 20
#: Most events that are kept until somebody asks for them; older ones are dropped and counted.
MOST_EVENTS = 1024
_CLOSE_BUDGET_S = 1.0
#: Most characters of an event's members, names included; QEMU's own have some hundreds.
_LARGEST_EVENT = 16384


class Event(msgspec.Struct, frozen=True):
    """Something QEMU told of unasked. ``data`` are its plain members, unchecked: compare them, never trust them."""

    name: str
    data: Mapping[str, object]


class Monitor(Protocol):
    """What the rest of the program needs of a VM's monitor, whatever carries it."""

    @property
    def name(self) -> str:
        """The monitor in words, for messages."""

    @property
    def peer_pid(self) -> int | None:
        """The process at the other end, where that is known."""

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, budget_s: float | None = None
    ) -> object:
        """The ``return`` of one command, unchecked.

        :param budget_s: seconds allowed; None for the monitor's own.
        :raise PeerRefused: QEMU answered with an error.
        :raise PeerTimeout: no answer in time; whether the command ran is unknown.
        :raise PeerGone: the connection ended; whether the command ran is unknown.
        :raise PeerGarbage: the answer is no QMP. The connection is of no more use.
        """

    def execute_all(
        self, questions: Sequence[Question], *, budget_s: float | None = None
    ) -> list[object | PeerRefused]:
        """The ``return`` of each command or what it was refused with, in their order.

        They run in that order too, and a refused one does not keep the next from running. Where a monitor can, they
        are sent without waiting for the answers in between.

        :param budget_s: seconds allowed for each, from the answer to the one before; None for the monitor's own.
        :raise PeerError: as :meth:`execute` does but for PeerRefused; which of the commands ran is unknown.
        """

    def take_events(self) -> tuple[Event, ...]:
        """The events that came since the last call, oldest first; never waits, empty where events are not carried."""

    def close(self) -> None:
        """Leave the monitor to the next client. Never fails, and takes a second at most; a second call does nothing."""


def ask(
    monitor: Monitor,
    command: str,
    wanted: type[T],
    arguments: Mapping[str, object] | None = None,
    *,
    budget_s: float | None = None,
) -> T:
    """One command's reply as a value of type *wanted*. :raise PeerError: as :meth:`Monitor.execute` does."""
    reply = monitor.execute(command, arguments, budget_s=budget_s)
    return replies.parse(reply, wanted, command, monitor.name)


def human(monitor: Monitor, line: str, *, budget_s: float | None = None) -> str:
    """What the human monitor command *line* prints. :raise PeerError: as :meth:`Monitor.execute` does."""
    command, arguments = human_question(line)
    return ask(monitor, command, replies.Text, arguments, budget_s=budget_s)


def human_question(line: str) -> Question:
    """The question that :func:`human` asks."""
    return "human-monitor-command", {"command-line": line}


class QmpMonitor:
    """A monitor on a connected stream socket. It runs a loop of its own, so a task of another loop must use a thread.

    :param sock: connected, non-blocking; it belongs to the monitor from now on, also if this raises.
    :param name: the monitor in words.
    :param budget_s: how long greeting and negotiation, and later each command, may take.
    :raise PeerTimeout: nobody greeted in time; another client may hold the monitor.
    :raise PeerGone: the peer hung up. :raise PeerGarbage: what it sent is not QMP.
    :raise PeerRefused: it refused to leave the negotiation mode.
    """

    def __init__(
        self, sock: socket.socket, name: str, *, budget_s: float = DEFAULT_BUDGET_S, peer_pid: int | None = None
    ) -> None:
        from vfio_intx.qemu.client import Client

        _keep_quiet()
        self._name = name
        self._peer_pid = peer_pid
        self._budget_s = budget_s
        self._socket: socket.socket | None = sock
        self._broken: PeerError | None = None
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._dropped = 0
        self._runner = asyncio.Runner()
        self._client = Client(readbuflen=LONGEST_LINE)
        self._client.negotiate = False
        self._client.events.event_filter = self._keep_event
        try:
            self._greet(self._client, sock)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The monitor in words, for messages."""
        return self._name

    @property
    def peer_pid(self) -> int | None:
        """The process that listens on the socket, as the kernel tells it."""
        return self._peer_pid

    @property
    def events_dropped(self) -> int:
        """How many events were dropped: nobody asked for them in time, or they were too large to be any of QEMU's."""
        return self._dropped

    def _greet(self, client: Client, sock: socket.socket) -> None:
        deadline = Deadline.after("QMP greeting", self._budget_s)
        try:
            self._run(client.connect(sock), deadline)
        except PeerTimeout as error:
            error.hint = (
                "another client probably holds this monitor (QEMU serves one at a time), or QEMU is stopped; "
                "give the VM a second -qmp socket, or close the other client"
            )
            raise
        except PeerGone as error:
            raise PeerGone(f"{self._name} hung up before its greeting was complete", hint=error.hint) from error
        self._execute("qmp_capabilities", None, Deadline.after("QMP negotiation", self._budget_s))

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, budget_s: float | None = None
    ) -> object:
        """See :meth:`Monitor.execute`."""
        return self._execute(command, arguments, Deadline.after(command, budget_s or self._budget_s))

    def _execute(self, command: str, arguments: Mapping[str, object] | None, deadline: Deadline) -> object:
        from qemu.qmp import ExecuteError

        from vfio_intx.qemu.client import refusal

        self._require_usable()
        try:
            return self._run(self._client.execute(command, arguments), deadline)
        except ExecuteError as error:
            raise refusal(self._name, command, error) from error

    def execute_all(
        self, questions: Sequence[Question], *, budget_s: float | None = None
    ) -> list[object | PeerRefused]:
        """See :meth:`Monitor.execute_all`."""
        self._require_usable()
        each_s = budget_s or self._budget_s
        whole = Deadline.after(f"{len(questions)} commands", each_s * (len(questions) + 1))
        return self._run(self._client.execute_all(self._name, questions, each_s), whole)

    def _require_usable(self) -> None:
        if self._socket is None:
            raise PeerGone(f"{self._name} is closed")
        if self._broken is not None:
            raise self._broken

    def give_descriptor(self, fd: int, name: str) -> None:
        """Let QEMU have a copy of *fd* under *name*, until a command takes it or ``closefd`` drops it (``getfd``).

        The name belongs to this monitor: another one cannot use it. :raise PeerError: as :meth:`Monitor.execute` does.
        :raise KernelError: *fd* is not open; nothing was sent.
        """
        try:
            os.fstat(fd)
        except OSError as error:
            raise KernelError("fstat", f"descriptor {fd} for {escape(name)}", error.errno or 0) from error
        deadline = Deadline.after("getfd", self._budget_s)

        async def send() -> None:
            self._client.send_fd_scm(fd)

        self._require_usable()
        self._run(send(), deadline)
        self._execute("getfd", {"fdname": name}, deadline)

    def take_events(self) -> tuple[Event, ...]:
        """See :meth:`Monitor.take_events`. They are read while a command is under way."""
        taken = tuple(self._events)
        self._events.clear()
        return taken

    def _keep_event(self, message: Message) -> bool:
        """The client's event filter: take the event, and tell the client to keep nothing."""
        name, data = message.get("event"), message.get("data", {})
        if isinstance(name, str) and isinstance(data, dict):
            plain = {key: value for key, value in data.items() if isinstance(value, str | int | float | None)}
            if len(name) + sum(len(key) + len(str(value)) for key, value in plain.items()) > _LARGEST_EVENT:
                self._dropped += 1
                return False
            self._dropped += len(self._events) == MOST_EVENTS
            self._events.append(Event(name, plain))
        return False

    def _run(self, step: Coroutine[Any, Any, T], deadline: Deadline) -> T:
        """Run one step of the client under a deadline; everything it raises becomes one of ours."""
        from qemu.qmp import ExecuteError, QMPError

        async def bounded() -> T:
            async with asyncio.timeout(deadline.left()):
                return await step

        try:
            return self._runner.run(bounded())
        except KeyboardInterrupt:
            # It may have come when the step was over and the loop had been told to stop: the loop would stop once more
            # before it has done what it is asked next, and that is what takes a half-added device out again.
            with suppress(RuntimeError):
                self._runner.run(asyncio.sleep(0))
            raise
        except TimeoutError as error:
            raise PeerTimeout(self._name, deadline.name, deadline.budget_s) from error
        except ExecuteError:
            raise
        except (QMPError, OSError, EOFError, ValueError, TypeError, RecursionError, AttributeError) as error:
            self._broken = self._blame(error)
            raise self._broken from error

    def _blame(self, error: Exception) -> PeerError:
        """Which of our errors a failure of the client is: the peer went away, or it talked nonsense."""
        cause: BaseException = self._root_cause(error)
        if isinstance(cause, (EOFError, OSError)):
            return PeerGone(
                f"{self._name} closed the connection",
                hint="QEMU may have ended: see its log, and `vfio-intx status` for what still runs",
            )
        detail = escape(f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}")[:160]
        return PeerGarbage(
            f"{self._name} does not talk QMP ({detail})",
            hint="name a socket made with -qmp, not one of -monitor, -serial or another program",
        )

    def _root_cause(self, error: Exception) -> BaseException:
        """The first error of a chain: what the reader of the client met, where the client only says "interrupted"."""
        from qemu.qmp import ConnectError, ExecInterruptedError, StateError

        if isinstance(error, ConnectError):
            return _innermost(error.exc)
        # StateError: the reader met its end after the answer to the command before.
        if isinstance(error, (ExecInterruptedError, StateError)):
            try:
                self._runner.run(self._disconnect())
            except Exception as reason:
                return _innermost(reason)
            return EOFError()
        return error

    async def _disconnect(self) -> None:
        async with asyncio.timeout(_CLOSE_BUDGET_S):
            await self._client.disconnect()

    def close(self) -> None:
        """See :meth:`Monitor.close`."""
        if self._socket is None:
            return
        sock, self._socket = self._socket, None
        # First, so that a flush towards a peer that does not read ends at once.
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        from qemu.qmp.protocol import Runstate

        # What the reader met is of no interest any more: every error of the peer has been told by then.
        with suppress(Exception):
            if self._client.runstate is not Runstate.IDLE:
                self._runner.run(self._disconnect())
        with suppress(Exception):
            self._runner.close()
        sock.close()

    def __enter__(self) -> QmpMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


@functools.cache
def _keep_quiet() -> None:
    """Without a handler of its own, qemu.qmp's complaints about a bad peer would land raw on stderr."""
    logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
    logging.getLogger("qemu.qmp").propagate = False


def _innermost(error: BaseException) -> BaseException:
    """The root of qemu.qmp's wrappings, which keep the cause in ``__cause__`` or in ``error``/``exc``."""
    for _ in range(8):
        inner = getattr(error, "error", None) or getattr(error, "exc", None)
        if not isinstance(inner, BaseException):
            return error
        error = inner
    return error
