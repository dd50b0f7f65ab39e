"""One short look at a VM: a question that several lines of it have in common is asked once."""

from __future__ import annotations

from collections.abc import Mapping

from vfio_intx.errors import PeerRefused
from vfio_intx.qemu.monitor import Event, Monitor


class Visit:
    """A :class:`~vfio_intx.qemu.monitor.Monitor` that remembers what another one answered, refusals included.

    Only for questions, and only for as long as one moment is meant. It closes the other one.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._answers: dict[str, object] = {}

    @property
    def name(self) -> str:
        """The other's."""
        return self._monitor.name

    @property
    def peer_pid(self) -> int | None:
        """The other's."""
        return self._monitor.peer_pid

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, budget_s: float | None = None
    ) -> object:
        """As :meth:`Monitor.execute`, the first time; the same answer or refusal afterwards."""
        question = f"{command} {sorted((arguments or {}).items())!r}"
        if question not in self._answers:
            try:
                self._answers[question] = self._monitor.execute(command, arguments, budget_s=budget_s)
            except PeerRefused as refusal:
                self._answers[question] = refusal
        answer = self._answers[question]
        if isinstance(answer, PeerRefused):
            raise answer
        return answer

    def take_events(self) -> tuple[Event, ...]:
        """The other's."""
        return self._monitor.take_events()

    def close(self) -> None:
        """Close the other."""
        self._monitor.close()
