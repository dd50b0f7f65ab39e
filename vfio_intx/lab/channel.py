"""Two ways to talk to a guest of the lab, both over unix sockets, both with deadlines: its shell and QEMU's monitor.

The monitor here is the lab's own, deliberately not the product's: a witness must not share the code it testifies about.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import select
import socket
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.deadline import Deadline
from vfio_intx.errors import PeerGarbage, PeerGone, PeerRefused, PeerTimeout

_LONGEST = 1 << 24
#: For the other end to take what is sent: a command is short, so this passes only where it has stopped reading.
_SEND_S = 30.0
_END = re.compile(rb"END ([0-9]{1,9}) ([0-9]{1,3})")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in the guest came to. ``text`` is its output, stdout and stderr together."""

    status: int
    text: str


class LineSocket:
    """Lines over a unix stream socket. *peer* names the other end in errors."""

    def __init__(self, path: Path, peer: str, deadline: Deadline) -> None:
        self._peer = peer
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_SEND_S)

        def connected() -> bool:
            # BlockingIOError: others wait in front of us, more than it lets wait (unix_stream_connect in net/unix).
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                self._socket.connect(str(path))
                return True
            return False

        if not deadline.poll(connected):
            self._socket.close()
            raise PeerTimeout(peer, deadline.name, deadline.budget_s)

    def send(self, data: bytes) -> None:
        """:raise PeerGone: if the other end is closed. :raise PeerTimeout: it does not read; this line is half sent."""
        try:
            self._socket.sendall(data)
        except TimeoutError as error:
            raise PeerTimeout(self._peer, "sending", _SEND_S) from error
        except OSError as error:
            raise PeerGone(f"{self._peer} is gone: {error.strerror}") from error

    def line(self, deadline: Deadline) -> bytes:
        """The next line, without its end. :raise PeerTimeout: :raise PeerGone: :raise PeerGarbage: if endless."""
        while b"\n" not in self._rest:
            if not select.select([self._socket], [], [], deadline.left())[0]:
                raise PeerTimeout(self._peer, deadline.name, deadline.budget_s)
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise PeerGone(f"{self._peer} is gone: {error.strerror}") from error
            if not data:
                raise PeerGone(f"{self._peer} closed the connection")
            self._rest += data
            if len(self._rest) > _LONGEST:
                raise PeerGarbage(f"{self._peer} sent a line that does not end")
        line, _, self._rest = self._rest.partition(b"\n")
        return line.rstrip(b"\r")

    def close(self) -> None:
        """Close our end."""
        self._socket.close()


class Shell:
    """The guest's command port: one command at a time, each with a number, its output in base64 between two frames."""

    def __init__(self, path: Path, deadline: Deadline) -> None:
        self._lines = LineSocket(path, "the guest's shell", deadline)
        self._number = 0

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait for the guest's init to say that it reads commands."""
        while not self._lines.line(deadline).startswith(b"READY "):
            pass

    def run(self, command: str, deadline: Deadline) -> Answer:
        """Run *command* in the guest's ``sh``.

        :raise PeerTimeout: the command goes on in the guest; its late answer is recognised and dropped.
        """
        self._number += 1
        number = str(self._number).encode()
        self._lines.send(number + b" " + base64.b64encode(command.encode()) + b"\n")
        while self._lines.line(deadline) != b"BEGIN " + number:
            pass
        body = bytearray()
        while (match := _END.fullmatch(line := self._lines.line(deadline))) is None:
            body += line
        if match[1] != number:
            raise PeerGarbage(f"the guest's shell ended command {match[1].decode()}, which was not running")
        try:
            output = base64.b64decode(bytes(body), validate=True)
        except binascii.Error as error:
            raise PeerGarbage(f"the guest's shell sent a broken answer: {error}") from error
        return Answer(int(match[2]), output.decode("utf-8", "replace"))

    def close(self) -> None:
        """Close our end; the guest goes on."""
        self._lines.close()


class Monitor:
    """A QMP client of a few lines: greeting, commands, and the events that came in between."""

    def __init__(self, path: Path, deadline: Deadline) -> None:
        self._lines = LineSocket(path, "the guest's monitor", deadline)
        self._number = 0
        self.events: list[dict[str, object]] = []
        try:
            self._message(deadline)
            self.execute("qmp_capabilities", deadline)
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, deadline: Deadline, **arguments: object) -> object:
        """The ``return`` of a QMP command. :raise PeerRefused: with QEMU's own words.

        :raise PeerTimeout: its late answer is recognised and dropped.
        """
        self._number += 1
        request = {"execute": command, "arguments": arguments, "id": self._number}
        self._lines.send(json.dumps(request).encode() + b"\n")
        while True:
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)
            elif message.get("id", self._number) != self._number:
                continue
            elif "error" in message:
                error = message["error"]
                if not isinstance(error, dict):
                    raise PeerGarbage("the guest's monitor sent an error that is none")
                raise PeerRefused(command, str(error.get("class")), str(error.get("desc")))
            elif "return" in message:
                return message["return"]

    def wait_event(self, name: str, deadline: Deadline) -> dict[str, object]:
        """The next event of that name (one that has come already counts); it is taken off :attr:`events`."""
        while True:
            for index, event in enumerate(self.events):
                if event.get("event") == name:
                    return self.events.pop(index)
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)

    def human(self, line: str, deadline: Deadline) -> str:
        """The output of a command of QEMU's human monitor, such as ``info irq``."""
        return str(self.execute("human-monitor-command", deadline, **{"command-line": line}))

    def _message(self, deadline: Deadline) -> dict[str, object]:
        line = self._lines.line(deadline)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PeerGarbage("the guest's monitor sent what is not JSON") from error
        if not isinstance(message, dict):
            raise PeerGarbage("the guest's monitor sent what is not an object")
        return message

    def close(self) -> None:
        """Close our end."""
        self._lines.close()
