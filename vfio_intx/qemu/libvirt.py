"""A monitor that libvirt holds: each command goes through ``virsh qemu-monitor-command``.

libvirtd owns the VM's only monitor socket, so we never touch it. Events are not carried: callers ask for the state
instead. libvirt marks the domain as tainted (``custom-monitor``) on the first command; that is its documented answer to
anybody who goes past it, and the message of ``attach`` says so.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from vfio_intx.deadline import Deadline
from vfio_intx.errors import MissingError, PeerError, PeerGarbage, PeerGone, PeerRefused, PeerTimeout, UsageError
from vfio_intx.names import escape
from vfio_intx.qemu.monitor import DEFAULT_BUDGET_S, LONGEST_LINE, Event, Question

_DOMAIN = re.compile(r"[A-Za-z0-9_.:+@][A-Za-z0-9_.:+@ -]{0,127}")
_LONGEST_WORDS = 1024
#: For a killed virsh to be gone.
_KILL_S = 1.0


class _Error(msgspec.Struct, frozen=True):
    error_class: str = msgspec.field(name="class")
    desc: str


class _Reply(msgspec.Struct, frozen=True):
    result: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="return", default=msgspec.UNSET)
    error: _Error | msgspec.UnsetType = msgspec.UNSET


def parse_domain(text: str) -> str:
    """A domain's name, UUID or number, safe as an argument. :raise UsageError: if it is not one."""
    if not _DOMAIN.fullmatch(text):
        raise UsageError(f"{text[:64]!r} is not the name of a libvirt domain", hint="`virsh list` shows the names")
    return text


class VirshMonitor:
    """The monitor of one libvirt domain. Holds nothing between commands, so closing it does nothing.

    :param domain: a name that :func:`parse_domain` took.
    """

    def __init__(self, domain: str, *, budget_s: float = DEFAULT_BUDGET_S, peer_pid: int | None = None) -> None:
        self._domain = domain
        self._budget_s = budget_s
        self._peer_pid = peer_pid

    @property
    def name(self) -> str:
        """The monitor in words, for messages."""
        return f"libvirt's monitor of {self._domain}"

    @property
    def peer_pid(self) -> int | None:
        """The QEMU behind it, if whoever made this monitor knew it."""
        return self._peer_pid

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, budget_s: float | None = None
    ) -> object:
        """See :meth:`vfio_intx.qemu.monitor.Monitor.execute`."""
        request: dict[str, object] = {"execute": command}
        if arguments is not None:
            request["arguments"] = arguments
        deadline = Deadline.after(command, budget_s or self._budget_s)
        output = self._virsh(["qemu-monitor-command", "--domain", self._domain, json.dumps(request)], deadline)
        try:
            reply = msgspec.json.decode(output, type=_Reply)
            if reply.error is not msgspec.UNSET and reply.result is msgspec.UNSET:
                raise PeerRefused(
                    command, escape(reply.error.error_class)[:64], escape(reply.error.desc)[:_LONGEST_WORDS]
                )
            if reply.result is not msgspec.UNSET and reply.error is msgspec.UNSET:
                decoded: object = msgspec.json.decode(reply.result)
                return decoded
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise PeerGarbage(f"{self.name} answered {command} with something that is not QMP") from error
        raise PeerGarbage(f"{self.name} answered {command} with neither or both of a result and an error")

    def execute_all(
        self, questions: Sequence[Question], *, budget_s: float | None = None
    ) -> list[object | PeerRefused]:
        """See :meth:`vfio_intx.qemu.monitor.Monitor.execute_all`; each is a virsh of its own."""
        answers: list[object | PeerRefused] = []
        for command, arguments in questions:
            try:
                answers.append(self.execute(command, arguments, budget_s=budget_s))
            except PeerRefused as refusal:
                answers.append(refusal)
        return answers

    def _virsh(self, arguments: list[str], deadline: Deadline) -> bytes:
        environment = {**os.environ, "LC_ALL": "C"}
        try:
            # A session of its own: Ctrl-C reaches us alone, and what virsh started ends with it.
            process = subprocess.Popen(
                ["virsh", "--quiet", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise MissingError("there is no virsh here", hint="apt-get install libvirt-clients") from error
        try:
            output, complaint = process.communicate(timeout=deadline.left())
        except subprocess.TimeoutExpired as error:
            raise PeerTimeout(self.name, deadline.name, deadline.budget_s) from error
        finally:
            _end(process)
        if process.returncode != 0:
            raise self._complaint(complaint.decode("utf-8", "backslashreplace"))
        if len(output) > LONGEST_LINE:
            raise PeerGarbage(f"{self.name} answered with {len(output)} bytes")
        return output

    def _complaint(self, text: str) -> PeerError | MissingError:
        words = escape(" ".join(text.split()))[:_LONGEST_WORDS]
        if "failed to get domain" in text or "Domain not found" in text:
            return MissingError(f"libvirt knows no domain {self._domain!r}", hint="`virsh list` shows the names")
        return PeerGone(f"{self.name} cannot be reached: {words}", hint="`virsh domstate` tells whether it runs")

    def take_events(self) -> tuple[Event, ...]:
        """Always empty: virsh carries no events on a command."""
        return ()

    def close(self) -> None:
        """Nothing to leave."""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what still runs. What virsh has started in a session of its own (ssh does) may keep our pipes open."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_S)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
