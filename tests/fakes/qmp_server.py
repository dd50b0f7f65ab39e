"""QMP servers to test a client on: one that behaves (a VM with a PCI bus), and scripts that do not.

A server listens on a Unix socket and serves one client at a time, as QEMU does. It runs in a thread of its own and
is stopped by closing it, which also ends a script that waits.
"""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

#: Seconds to give to a client that shall see a peer fall silent *after* its first words: the next one where the machine
#: was too slow for those, so that no test depends on its speed.
PATIENCE = (0.1, 1.0, 10.0, 60.0)

#: What QEMU 7.2.22 of Debian greets with.
GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7+deb12u18"},
        "capabilities": ["oob"],
    }
}


class Hangup(Exception):
    """The client closed the connection, or the server was stopped."""


class Line:
    """The server's end of one connection, for scripts."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Hangup from error

    def say(self, message: object) -> None:
        """Send one JSON message."""
        self.send(json.dumps(message).encode() + b"\r\n")

    def hear(self) -> dict[str, Any]:
        """The client's next message; QEMU takes JSON values without caring for line ends, and so does this."""
        decoder = json.JSONDecoder()
        while True:
            text = self._rest.decode().lstrip()
            with suppress(json.JSONDecodeError):
                message, end = decoder.raw_decode(text)
                self._rest = text[end:].encode()
                return dict(message)
            try:
                data = self.sock.recv(65536)
            except OSError as error:
                raise Hangup from error
            if not data:
                raise Hangup
            self._rest += data

    def is_more(self, within_s: float) -> bool:
        """Whether the client sends, or has sent, something beyond what was heard."""
        return bool(self._rest.strip()) or bool(select.select([self.sock], [], [], within_s)[0])

    def wait_for_hangup(self) -> None:
        """Say nothing until the client goes away."""
        try:
            while self.sock.recv(65536):
                pass
        except OSError:
            pass

    def negotiate(self) -> None:
        """Greet, and answer the client's first command."""
        self.say(GREETING)
        self.say({"return": {}, "id": self.hear().get("id")})


Script = Callable[[Line], None]


class QmpServer:
    """A listening socket at *path* whose connections are served by *script*, one after the other."""

    def __init__(self, path: Path, script: Script) -> None:
        self.path = path
        self._script = script
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._current: socket.socket | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"qmp {path.name}", daemon=True)

    def __enter__(self) -> QmpServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, hang up, and wait for the thread."""
        self._stopped.set()
        for sock in (self._listener, self._current):
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=10)
        self._listener.close()

    def close_soon(self) -> None:
        """Stop listening, from within a script: what a dying QEMU does."""
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while not self._stopped.is_set():
            try:
                self._current, _ = self._listener.accept()
            except OSError:
                return
            with self._current, suppress(Hangup):
                self._script(Line(self._current))


@contextmanager
def serving(path: Path, script: Script) -> Iterator[Path]:
    """A server for the length of a block; its path."""
    with QmpServer(path, script):
        yield path


def answering(make: Callable[[dict[str, Any]], object]) -> Script:
    """A script that negotiates well and then sends, for each command, the message that *make* makes of it."""

    def script(line: Line) -> None:
        line.negotiate()
        while True:
            request = line.hear()
            reply = make(request)
            if isinstance(reply, bytes):
                line.send(reply)
            else:
                line.say(reply)

    return script


def silent(line: Line) -> None:
    """Accept, and never say a word."""
    line.wait_for_hangup()


def half_a_greeting(line: Line) -> None:
    """Begin the greeting and stop in the middle."""
    line.send(json.dumps(GREETING).encode()[:40])
    line.wait_for_hangup()


def half_a_greeting_and_gone(line: Line) -> None:
    """Begin the greeting and hang up in the middle."""
    line.send(json.dumps(GREETING).encode()[:40])


def never_negotiates(line: Line) -> None:
    """Greet, and never answer the first command."""
    line.say(GREETING)
    line.wait_for_hangup()


def refuses_negotiation(line: Line) -> None:
    """Greet, and refuse to leave the negotiation mode."""
    line.say(GREETING)
    line.say({"error": {"class": "CommandNotFound", "desc": "no"}, "id": line.hear().get("id")})
    line.wait_for_hangup()


def never_replies(line: Line) -> None:
    """Negotiate, and never answer a command."""
    line.negotiate()
    line.wait_for_hangup()


def dies_on_command(line: Line) -> None:
    """Negotiate, and hang up on the first command."""
    line.negotiate()
    line.hear()


def saying(data: bytes) -> Script:
    """A script that sends these bytes instead of a greeting."""

    def script(line: Line) -> None:
        line.send(data)
        line.wait_for_hangup()

    return script


def own_descriptors(path: Path) -> int:
    """How many descriptors this process has, apart from the sockets of a server at *path*.

    The server lives in this process and closes its end a little later; its sockets carry the path in /proc/net/unix.
    """
    table = Path("/proc/net/unix").read_text()
    servers = {row.split()[6] for row in table.splitlines() if row.endswith(str(path))}
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this very listing
            count += str(entry.readlink()).removeprefix("socket:[").removesuffix("]") not in servers
    return count
