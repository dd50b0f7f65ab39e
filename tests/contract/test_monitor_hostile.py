"""Whatever the other end of a monitor does, the client ends in time with one error of ours and nothing left open."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import qmp_server as fake
from vfio_intx.deadline import Deadline
from vfio_intx.errors import PeerError, PeerGarbage, PeerGone, PeerRefused, PeerTimeout
from vfio_intx.host.root import HostRoot
from vfio_intx.qemu import replies
from vfio_intx.qemu.monitor import LONGEST_LINE, MOST_EVENTS, QmpMonitor, ask
from vfio_intx.qemu.transports import clients_of, connect

SHORT_S = 0.1

NESTED = b'{"a":' * 50_000
BAD_GREETINGS = {
    "bytes": b"\x80\x81\xfe\xff\n",
    "text": b"QEMU 7.2.22 monitor - type 'help' for more information\n(qemu) \n",
    "a list": b"[]\n",
    "a number": b"7\n",
    "nested": NESTED + b"\n",
    "no QMP": b'{"hello": "world"}\n',
    "QMP of another kind": b'{"QMP": 7}\n',
    "a long number": b'{"QMP": ' + b"9" * 5000 + b"}\n",
    "no capabilities": b'{"QMP": {"version": {}}}\n',
}


@pytest.mark.parametrize("greeting", BAD_GREETINGS.values(), ids=BAD_GREETINGS.keys())
def test_a_greeting_that_is_none(tmp_path: Path, greeting: bytes) -> None:
    with (
        fake.serving(tmp_path / "s", fake.saying(greeting)) as path,
        pytest.raises(PeerGarbage, match="does not talk QMP"),
    ):
        connect(path, budget_s=60)


@pytest.mark.parametrize(
    ("script", "deadline"),
    [
        (fake.silent, "QMP greeting"),
        (fake.half_a_greeting, "QMP greeting"),
        (fake.saying(b" " * 1000), "QMP greeting"),
        (fake.never_negotiates, "QMP negotiation"),
    ],
    ids=["silent", "half", "spaces", "never negotiates"],
)
def test_a_peer_that_never_greets_ends_the_wait_by_name(tmp_path: Path, script: fake.Script, deadline: str) -> None:
    with fake.serving(tmp_path / "s", script) as path:
        for seconds in fake.PATIENCE:
            with pytest.raises(PeerTimeout) as caught:
                connect(path, budget_s=seconds)
            if caught.value.deadline == deadline:
                break
    assert caught.value.deadline == deadline
    assert caught.value.budget_s == seconds


def test_silence_before_the_greeting_hints_at_another_client(tmp_path: Path) -> None:
    with fake.serving(tmp_path / "s", fake.silent) as path, pytest.raises(PeerTimeout) as caught:
        connect(path, budget_s=SHORT_S)
    assert "another client probably holds this monitor" in (caught.value.hint or "")


def test_a_late_greeting_within_the_deadline_is_taken(tmp_path: Path) -> None:
    late = threading.Event()

    def script(line: fake.Line) -> None:
        late.wait(SHORT_S)
        fake.answering(lambda request: {"return": {"status": "running", "running": True}, "id": request["id"]})(line)

    with fake.serving(tmp_path / "s", script) as path, connect(path, budget_s=60) as monitor:
        assert ask(monitor, "query-status", replies.RunState).running


def test_half_a_greeting_and_gone(tmp_path: Path) -> None:
    with fake.serving(tmp_path / "s", fake.half_a_greeting_and_gone) as path, pytest.raises(PeerError):
        connect(path, budget_s=60)


def test_a_hangup_instead_of_a_greeting(tmp_path: Path) -> None:
    with (
        fake.serving(tmp_path / "s", lambda line: None) as path,
        pytest.raises(PeerGone, match="hung up before its greeting"),
    ):
        connect(path, budget_s=60)


def test_a_refused_negotiation(tmp_path: Path) -> None:
    with fake.serving(tmp_path / "s", fake.refuses_negotiation) as path, pytest.raises(PeerRefused):
        connect(path, budget_s=60)


def test_a_refused_negotiation_under_python_o(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from vfio_intx.errors import PeerRefused
        from vfio_intx.qemu.transports import connect
        try:
            connect(Path(sys.argv[1]), budget_s=60)
        except PeerRefused:
            sys.exit(7)
    """)
    with fake.serving(tmp_path / "s", fake.refuses_negotiation) as path:
        done = subprocess.run([sys.executable, "-O", "-c", program, str(path)], timeout=80)
    assert done.returncode == 7


def test_a_command_without_a_reply(tmp_path: Path) -> None:
    with (
        fake.serving(tmp_path / "s", fake.never_replies) as path,
        connect(path, budget_s=60) as monitor,
        pytest.raises(PeerTimeout) as caught,
    ):
        monitor.execute("query-pci", budget_s=SHORT_S)
    assert caught.value.deadline == "query-pci"


def test_a_reply_after_its_deadline_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def script(line: fake.Line) -> None:
        line.negotiate()
        asked.extend((line.hear(), line.hear()))
        for number, request in enumerate(asked):
            line.say({"return": number, "id": request["id"]})
        line.wait_for_hangup()

    with fake.serving(tmp_path / "s", script) as path, connect(path, budget_s=60) as monitor:
        with pytest.raises(PeerTimeout):
            monitor.execute("first", budget_s=SHORT_S)
        assert monitor.execute("second") == 1


def test_a_peer_that_dies_on_a_command_is_gone_for_good(tmp_path: Path) -> None:
    with fake.serving(tmp_path / "s", fake.dies_on_command) as path, connect(path, budget_s=60) as monitor:
        for _ in range(2):
            with pytest.raises(PeerGone, match="closed the connection"):
                monitor.execute("query-pci")


BAD_REPLIES: dict[str, bytes] = {
    "bytes": b"\x80\xff\n",
    "nested": NESTED + b"\n",
    "a list": b"[1]\n",
    "an error of the parser": b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
    "a list as id": b'{"return": {}, "id": []}\n',
    "an endless line": b" " * (LONGEST_LINE + 1_000_000) + b"\n",
}


@pytest.mark.parametrize("reply", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_a_reply_that_is_no_qmp(tmp_path: Path, reply: bytes) -> None:
    with (
        fake.serving(tmp_path / "s", fake.answering(lambda request: reply)) as path,
        connect(path, budget_s=60) as monitor,
        pytest.raises(PeerGarbage),
    ):
        monitor.execute("query-pci")


@pytest.mark.parametrize(
    "body",
    [
        {"return": {}, "error": {"class": "GenericError", "desc": "both"}},
        {},
        {"error": {"class": 7, "desc": "a number"}},
        {"error": "words"},
        {"error": {"desc": "no class"}},
    ],
    ids=["both", "neither", "class", "words", "no class"],
)
def test_a_reply_with_the_wrong_members(tmp_path: Path, body: dict[str, object]) -> None:
    def make(request: dict[str, Any]) -> object:
        return {**body, "id": request["id"]}

    with (
        fake.serving(tmp_path / "s", fake.answering(make)) as path,
        connect(path, budget_s=60) as monitor,
        pytest.raises(PeerGarbage),
    ):
        monitor.execute("query-pci")


@pytest.mark.parametrize(
    "result",
    [b"NaN", b'{"status": NaN, "running": true}', b'{"status": "x"}', b'{"status": "x", "running": 1}', b"[]", b"null"],
)
def test_a_result_of_another_shape(tmp_path: Path, result: bytes) -> None:
    def make(request: dict[str, Any]) -> bytes:
        return b'{"return": ' + result + b', "id": ' + json.dumps(request["id"]).encode() + b"}\n"

    with (
        fake.serving(tmp_path / "s", fake.answering(make)) as path,
        connect(path, budget_s=60) as monitor,
        pytest.raises(PeerGarbage, match="query-status"),
    ):
        ask(monitor, "query-status", replies.RunState)


def test_no_control_byte_of_an_error_reaches_a_terminal(tmp_path: Path) -> None:
    def make(request: dict[str, Any]) -> object:
        words = {"class": "Generic\x1b[2JError", "desc": "\x1b]0;title\x07 \x9b31m" + "x" * 100_000}
        return {"error": words, "id": request["id"]}

    with (
        fake.serving(tmp_path / "s", fake.answering(make)) as path,
        connect(path, budget_s=60) as monitor,
        pytest.raises(PeerRefused) as caught,
    ):
        monitor.execute("query-pci")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def test_a_flood_of_events_is_bounded_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    flood = b"".join(
        json.dumps({"event": "E", "data": {"n": number}, "timestamp": {}}).encode() + b"\n" for number in range(20_000)
    )

    def make(request: dict[str, Any]) -> bytes:
        return flood + json.dumps({"return": {}, "id": request["id"]}).encode() + b"\n"

    with fake.serving(tmp_path / "s", fake.answering(make)) as path, connect(path, budget_s=60) as monitor:
        monitor.execute("query-pci")
        events = monitor.take_events()
        assert [event.data["n"] for event in events] == list(range(20_000 - MOST_EVENTS, 20_000))
        assert monitor.events_dropped == 20_000 - MOST_EVENTS
        assert monitor.take_events() == ()


def test_events_of_any_size_cost_a_bounded_memory(tmp_path: Path) -> None:
    large = [{"text": "x" * (4 << 20)}, {"x" * (4 << 20): 1}, {"list": [0] * 100_000}]
    lines = b"".join(json.dumps({"event": "E", "data": data}).encode() + b"\n" for data in large)

    def reply(request: dict[str, Any]) -> bytes:
        return lines + json.dumps({"return": {}, "id": request["id"]}).encode() + b"\n"

    with fake.serving(tmp_path / "s", fake.answering(reply)) as path, connect(path, budget_s=60) as monitor:
        monitor.execute("x")
        assert [event.data for event in monitor.take_events()] == [{}]
        assert monitor.events_dropped == 2


@pytest.mark.parametrize("event", [{"event": 7}, {"event": "E", "data": []}, {"event": None, "data": {"a": 1}}])
def test_an_event_of_another_shape_is_dropped(tmp_path: Path, event: dict[str, object]) -> None:
    def make(request: dict[str, Any]) -> bytes:
        return json.dumps(event).encode() + b"\n" + json.dumps({"return": {}, "id": request["id"]}).encode() + b"\n"

    with fake.serving(tmp_path / "s", fake.answering(make)) as path, connect(path, budget_s=60) as monitor:
        monitor.execute("query-pci")
        assert monitor.take_events() == ()


def test_closing_on_a_peer_that_does_not_read_returns(tmp_path: Path) -> None:
    def script(line: fake.Line) -> None:
        line.negotiate()
        stop.wait(80)

    stop = threading.Event()
    with fake.serving(tmp_path / "s", script) as path:
        monitor = connect(path, budget_s=60)
        with pytest.raises(PeerTimeout):
            monitor.execute("big", {"text": "x" * (13 << 20)}, budget_s=SHORT_S)
        closed = threading.Thread(target=monitor.close)
        closed.start()
        closed.join(timeout=60)
        stop.set()
        assert not closed.is_alive()


def test_a_closed_monitor_refuses_and_closing_again_does_nothing(tmp_path: Path) -> None:
    with fake.serving(tmp_path / "s", fake.never_replies) as path:
        monitor = connect(path, budget_s=60)
        monitor.close()
        monitor.close()
        with pytest.raises(PeerGone, match="is closed"):
            monitor.execute("query-pci")


@pytest.mark.parametrize(
    ("script", "budget_s"),
    [(fake.silent, 0.1), (fake.saying(b"x\n"), 5), (fake.dies_on_command, 5), (fake.never_negotiates, 0.1)],
)
def test_no_descriptor_and_no_thread_is_left(tmp_path: Path, script: fake.Script, budget_s: float) -> None:
    with fake.serving(tmp_path / "s", script) as path:
        before: tuple[int, int] | None = None
        for _ in range(3):
            with pytest.raises(PeerError), connect(path, budget_s=budget_s) as monitor:
                monitor.execute("query-pci")
            # The server is to let go of its end first, or we would be told that somebody is connected.
            assert Deadline.after("the server hangs up", 60).poll(lambda: not clients_of(path, HostRoot()))
            now = (threading.active_count(), fake.own_descriptors(path))
            assert before is None or now == before
            before = now


def test_ctrl_c_at_the_very_end_of_a_command_leaves_a_monitor_that_works(tmp_path: Path) -> None:
    # The signal comes when the task is done and the loop has yet to be told to stop. It then stopped before it had done
    # what it was asked next, and a device that attach had just added stayed in the VM.
    async def step() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)

    script = fake.answering(lambda request: {"return": [], "id": request["id"]})
    with fake.serving(tmp_path / "s", script) as path, connect(path, budget_s=60) as monitor:
        assert isinstance(monitor, QmpMonitor)
        with pytest.raises(KeyboardInterrupt):
            monitor._run(step(), Deadline.after("a step", 60))
        assert monitor.execute("query-pci") == []
