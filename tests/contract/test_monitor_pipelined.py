"""Several commands sent before the first answer: whatever the other end does, each answer belongs to its question."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import qmp_server as fake
from vfio_intx.errors import PeerGarbage, PeerGone, PeerRefused, PeerTimeout
from vfio_intx.qemu.client import MOST_BYTES, MOST_UNDER_WAY
from vfio_intx.qemu.monitor import Question
from vfio_intx.qemu.transports import connect

SHORT_S = 0.5


def numbered(count: int) -> list[Question]:
    return [("number", {"n": number}) for number in range(count)]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    return {"return": request["arguments"]["n"], "id": request["id"]}


def after_negotiation(serve: fake.Script) -> fake.Script:
    def script(line: fake.Line) -> None:
        line.negotiate()
        serve(line)
        line.wait_for_hangup()

    return script


def test_as_many_commands_as_qemu_queues_are_sent_before_the_first_answer_and_no_more(tmp_path: Path) -> None:
    too_many: list[bool] = []

    def serve(line: fake.Line) -> None:
        waiting = [line.hear() for _ in range(MOST_UNDER_WAY)]
        too_many.append(line.is_more(within_s=0.2))
        for _ in range(4):
            line.say(answer(waiting.pop(0)))
            waiting.append(line.hear())
        for request in waiting:
            line.say(answer(request))

    with fake.serving(tmp_path / "s", after_negotiation(serve)) as path, connect(path, budget_s=10) as monitor:
        assert monitor.execute_all(numbered(MOST_UNDER_WAY + 4)) == list(range(MOST_UNDER_WAY + 4))
    assert too_many == [False]


def test_nothing_is_sent_for_no_question(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []

    def serve(line: fake.Line) -> None:
        heard.append(line.hear())
        line.say(answer(heard[0]))

    with fake.serving(tmp_path / "s", after_negotiation(serve)) as path, connect(path, budget_s=10) as monitor:
        assert monitor.execute_all([]) == []
        assert monitor.execute_all(numbered(1)) == [0]
    assert len(heard) == 1


def test_answers_in_another_order_belong_to_their_questions_all_the_same(tmp_path: Path) -> None:
    def serve(line: fake.Line) -> None:
        for request in reversed([line.hear() for _ in range(MOST_UNDER_WAY)]):
            line.say(answer(request))

    with fake.serving(tmp_path / "s", after_negotiation(serve)) as path, connect(path, budget_s=10) as monitor:
        assert monitor.execute_all(numbered(MOST_UNDER_WAY)) == list(range(MOST_UNDER_WAY))


def test_a_refusal_in_the_middle_spoils_no_other_answer(tmp_path: Path) -> None:
    def make(request: dict[str, Any]) -> object:
        if request["arguments"]["n"] % 3 == 1:
            return {"error": {"class": "GenericError", "desc": "no\x1b[2J"}, "id": request["id"]}
        return answer(request)

    with fake.serving(tmp_path / "s", fake.answering(make)) as path, connect(path, budget_s=10) as monitor:
        answers = monitor.execute_all(numbered(20))
        for number, found in enumerate(answers):
            if number % 3 == 1:
                assert isinstance(found, PeerRefused)
                assert (found.command, found.error_class) == ("number", "GenericError")
                assert str(found).isprintable()
            else:
                assert found == number
        assert monitor.execute("number", {"n": 5}) == 5


def test_events_and_answers_to_nobody_in_between_are_kept_apart(tmp_path: Path) -> None:
    def make(request: dict[str, Any]) -> bytes:
        event = {"event": "E", "data": {"n": request["arguments"]["n"]}, "timestamp": {}}
        stray = {"return": 1000, "id": "of somebody else"}
        return b"".join(json.dumps(one).encode() + b"\r\n" for one in (event, stray, answer(request)))

    with fake.serving(tmp_path / "s", fake.answering(make)) as path, connect(path, budget_s=10) as monitor:
        assert monitor.execute_all(numbered(20)) == list(range(20))
        assert [event.data["n"] for event in monitor.take_events()] == list(range(20))


def breaks_after(good: int, rest: bytes | None) -> fake.Script:
    """Answer so many of a full queue, then send *rest*, or hang up."""

    def serve(line: fake.Line) -> None:
        line.negotiate()
        waiting = [line.hear() for _ in range(MOST_UNDER_WAY)]
        for request in waiting[:good]:
            line.say(answer(request))
        if rest is not None:
            line.send(rest.replace(b"ID", json.dumps(waiting[good]["id"]).encode()))
            line.wait_for_hangup()

    return serve


@pytest.mark.parametrize("good", [0, 3, MOST_UNDER_WAY - 1])
def test_a_peer_that_dies_in_the_middle_is_gone_for_good(tmp_path: Path, good: int) -> None:
    with fake.serving(tmp_path / "s", breaks_after(good, None)) as path, connect(path, budget_s=10) as monitor:
        for _ in range(2):
            with pytest.raises(PeerGone, match="closed the connection"):
                monitor.execute_all(numbered(MOST_UNDER_WAY))


@pytest.mark.parametrize(
    "rest",
    [
        b"\x80\xff not QMP\n",
        b'{"a":' * 50_000 + b"\n",
        b'{"id": ID}\n',
        b'{"id": ID, "error": "words"}\n',
        b'{"id": ID, "return": {}, "error": {"class": "GenericError", "desc": "both"}}\n',
        b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
    ],
    ids=["bytes", "nested", "neither", "words", "both", "an error of the parser"],
)
def test_garbage_in_the_middle(tmp_path: Path, rest: bytes) -> None:
    with (
        fake.serving(tmp_path / "s", breaks_after(3, rest)) as path,
        connect(path, budget_s=2) as monitor,
        pytest.raises(PeerGarbage),
    ):
        monitor.execute_all(numbered(MOST_UNDER_WAY))


def test_each_command_has_its_time_from_the_answer_before(tmp_path: Path) -> None:
    pause = threading.Event()

    def make(request: dict[str, Any]) -> object:
        pause.wait(0.21)
        return answer(request)

    with fake.serving(tmp_path / "s", fake.answering(make)) as path, connect(path, budget_s=10) as monitor:
        assert monitor.execute_all(numbered(10), budget_s=2.0) == list(range(10))


def test_the_command_that_is_not_answered_is_named_and_what_comes_late_is_dropped(tmp_path: Path) -> None:
    timed_out = threading.Event()

    def serve(line: fake.Line) -> None:
        waiting = [line.hear() for _ in range(4)]
        line.say(answer(waiting[0]))
        timed_out.wait(20)
        for request in (*waiting[1:], line.hear()):
            line.say(answer(request))

    questions: Iterable[Question] = [(f"number-{number}", {"n": number}) for number in range(4)]
    with fake.serving(tmp_path / "s", after_negotiation(serve)) as path, connect(path, budget_s=10) as monitor:
        with pytest.raises(PeerTimeout) as caught:
            monitor.execute_all(list(questions), budget_s=SHORT_S)
        assert (caught.value.deadline, caught.value.budget_s) == ("number-1", SHORT_S)
        timed_out.set()
        assert monitor.execute("number", {"n": 77}) == 77


def test_answers_that_are_huge_together_are_refused(tmp_path: Path) -> None:
    text = "x" * (7 << 20)
    asked: list[int] = []

    def make(request: dict[str, Any]) -> object:
        asked.append(request["arguments"]["n"])
        return {"return": text, "id": request["id"]}

    few = MOST_BYTES // len(text)
    with fake.serving(tmp_path / "s", fake.answering(make)) as path, connect(path, budget_s=20) as monitor:
        for _ in range(2):  # what was answered before does not count
            assert [len(str(one)) for one in monitor.execute_all(numbered(few))] == [len(text)] * few
        with pytest.raises(PeerGarbage, match="more than 32 MiB"):
            monitor.execute_all(numbered(10_000))
    assert len(asked) < 3 * few + 2 * MOST_UNDER_WAY, "it is left as soon as it is too much"


def test_a_peer_that_talks_before_it_reads_blocks_nobody(tmp_path: Path) -> None:
    flood = json.dumps({"event": "E", "data": {"text": "x" * 1000}}).encode() + b"\n"

    def serve(line: fake.Line) -> None:
        for _ in range(8):
            line.send(flood * 1000)  # a megabyte, of which a socket holds a fifth
        for _ in range(MOST_UNDER_WAY):
            line.say(answer(line.hear()))

    questions: list[Question] = [("number", {"n": n, "text": "y" * (1 << 20)}) for n in range(MOST_UNDER_WAY)]
    with fake.serving(tmp_path / "s", after_negotiation(serve)) as path, connect(path, budget_s=20) as monitor:
        assert monitor.execute_all(questions) == list(range(MOST_UNDER_WAY))
