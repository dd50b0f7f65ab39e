"""One short look at a VM: a question that several lines of it have in common is asked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vfio_intx.errors import PeerRefused
from vfio_intx.qemu.monitor import Event, Monitor, Question


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
        key = _key((command, arguments))
        if key not in self._answers:
            try:
                self._answers[key] = self._monitor.execute(command, arguments, budget_s=budget_s)
            except PeerRefused as refusal:
                self._answers[key] = refusal
        answer = self._answers[key]
        if isinstance(answer, PeerRefused):
            raise answer
        return answer

    def execute_all(
        self, questions: Sequence[Question], *, budget_s: float | None = None
    ) -> list[object | PeerRefused]:
        """As :meth:`Monitor.execute_all`, for those that were not asked before."""
        new = list({_key(question): question for question in questions if _key(question) not in self._answers}.values())
        answers = self._monitor.execute_all(new, budget_s=budget_s) if new else []
        self._answers.update(zip(map(_key, new), answers, strict=True))
        return [self._answers[_key(question)] for question in questions]

    def foresee(self, questions: Iterable[Question]) -> None:
        """Ask at once, in this order, what will be asked; the answers wait here. :raise PeerError: as ``execute``."""
        self.execute_all(list(questions))

    def take_events(self) -> tuple[Event, ...]:
        """The other's."""
        return self._monitor.take_events()

    def close(self) -> None:
        """Close the other."""
        self._monitor.close()


def _key(question: Question) -> str:
    command, arguments = question
    return f"{command} {sorted((arguments or {}).items())!r}"
