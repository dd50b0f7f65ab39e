"""The lab's process: its lines come as they are written, its end is certain, its words are not believed unread."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import qmp_server as fake
from vfio_intx.deadline import Deadline
from vfio_intx.errors import LabLost
from vfio_intx.lab import autopsy
from vfio_intx.lab.outcome import lost, read_status
from vfio_intx.lab.supervise import Ended, Follower, Lines, supervise


def _nothing() -> None:
    pass


def _gone(pid: int) -> bool:
    """Whether no process of that number runs; one that is dead but not reaped counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def _is_written(file: Path) -> bool:
    return file.exists() and file.read_text().endswith("\n")


def test_status_and_console_come_back(tmp_path: Path) -> None:
    ended = supervise(
        ["sh", "-c", "echo a >&2; echo no; echo b >&2; exit 7"],
        tmp_path / "console",
        Deadline.after("test", 60),
        _nothing,
    )
    assert ended == Ended(7, ("a", "b"))
    assert (tmp_path / "console").read_text() == "a\nb\n"


class Due(Deadline):
    """A deadline that comes, at the latest with its seconds, as soon as a file holds a line."""

    def passed(self) -> bool:
        return super().passed() or _is_written(Path(self.name))


def test_a_deadline_kills_the_whole_group(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/child; wait"
    due = Due.after(f"{tmp_path}/child", 60)
    ended = supervise(["sh", "-c", script], tmp_path / "console", due, _nothing)
    assert ended.status is None
    child = int((tmp_path / "child").read_text())
    assert Deadline.after("death", 60).poll(lambda: _gone(child))


def test_a_lab_that_somebody_else_kills_has_not_passed_its_deadline(tmp_path: Path) -> None:
    # 0 is the group, which is the lab's alone.
    ended = supervise(["sh", "-c", "kill -KILL 0"], tmp_path / "console", Deadline.after("test", 60), _nothing)
    assert ended.status == 128 + signal.SIGKILL


def test_a_look_at_a_lab_never_fails_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autopsy, "_APART_S", 0.01)
    assert "could not be looked at" in autopsy.perform(tmp_path / "gone")
    half = json.dumps({"return": "RIP=0 \ud800"})  # half a pair, which JSON can say and UTF-8 cannot
    with fake.serving(tmp_path / "l1-monitor.sock", fake.answering(lambda request: half.encode() + b"\n")):
        assert autopsy.perform(tmp_path) == "L1's vCPU was at RIP=0 and a second later at RIP=0"
    assert "\\ud800" in (tmp_path / autopsy.REPORT).read_text()


def test_an_interrupted_supervisor_leaves_nothing(tmp_path: Path) -> None:
    def interrupt() -> None:
        if _is_written(tmp_path / "child"):
            raise KeyboardInterrupt

    script = f"sleep 1000 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(KeyboardInterrupt):
        supervise(["sh", "-c", script], tmp_path / "console", Deadline.after("test", 60), interrupt)
    assert Deadline.after("death", 60).poll(lambda: _gone(int((tmp_path / "child").read_text())))


def test_a_killed_supervisor_leaves_nothing(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from vfio_intx.deadline import Deadline
from vfio_intx.lab.supervise import supervise
script = "sleep 1000 & echo $! > {tmp_path}/child; wait"
supervise(["sh", "-c", script], Path("{tmp_path}/console"), Deadline.after("test", 100), lambda: None)
"""
    child = tmp_path / "child"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        assert Deadline.after("start", 60).poll(lambda: _is_written(child))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert Deadline.after("death", 60).poll(lambda: _gone(int(child.read_text())))


def test_a_program_that_is_not_there_is_a_status(tmp_path: Path) -> None:
    ended = supervise([f"{tmp_path}/none"], tmp_path / "console", Deadline.after("test", 60), _nothing)
    assert ended.status == 127
    assert "not found" in ended.tail[0]


def test_lines_are_whole_and_of_bounded_length() -> None:
    lines = Lines()
    assert list(lines.feed(b"on")) == []
    assert list(lines.feed(b"e\r\ntwo\nthr")) == ["one", "two"]
    assert list(lines.feed(b"x" * 100_000)) == []
    (long,) = lines.feed(b"\n")
    assert len(long) <= 4096


def test_a_file_is_followed_from_before_it_is_there(tmp_path: Path) -> None:
    seen: list[str] = []
    follower = Follower(tmp_path / "output", seen.append)
    follower.look()
    (tmp_path / "output").write_text("one\ntw")
    follower.look()
    assert seen == ["one"]
    with (tmp_path / "output").open("a") as file:
        file.write("o\n")
    follower.close()
    assert seen == ["one", "two"]


@pytest.mark.parametrize("raw", [b"", b"0", b"-1\n", b"256\n", b"1 \n", b"0\n0\n", b"\xb2\n", b"0x1\n"])
def test_a_status_that_l1_did_not_write_is_none(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "status").write_bytes(raw)
    assert read_status(tmp_path) is None


def test_a_status_is_read(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    (tmp_path / "status").write_bytes(b"255\n")
    assert read_status(tmp_path) == 255


def test_a_lost_lab_says_when_and_of_what(tmp_path: Path) -> None:
    deadline = Deadline.after("scenario x", 5)
    console = tmp_path / "console"
    console.write_text(
        "x\n" * 50_000 + "[ 1.0] Kernel panic - not syncing: \x1b[2Jno init\r\n" + "[ 1.1] a trace\n" * 40
    )
    before = lost(tmp_path, Ended(1, ("[ 1.1] a trace",)), deadline)
    assert isinstance(before, LabLost)
    assert "before it came up: [ 1.0] Kernel panic - not syncing: \\x1b[2Jno init" in str(before)
    (tmp_path / "started").touch()
    assert "while its command was running" in str(lost(tmp_path, Ended(0, ()), deadline))
    assert "stopped after 5 s (deadline: scenario x), its command still running" in str(
        lost(tmp_path, Ended(None, ()), deadline)
    )
    assert before.exit_status == 3
