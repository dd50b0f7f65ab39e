"""Every bad monitor that ``attach``, ``detach`` and ``status`` can be given: a message, a next step, a status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.fakes import qmp_server as fake
from vfio_intx.cli.main import main
from vfio_intx.qemu.transports import LONGEST_SUN_PATH

NOBODY = "0000:ff:1f.7"
Make = Callable[[Path], Path]


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "without_root" not in request.node.name:
        monkeypatch.setattr("os.geteuid", lambda: 0)


def said(capsys: pytest.CaptureFixture[str], argv: list[str], status: int) -> str:
    assert main(argv) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err


VERBS = [["attach", NOBODY], ["detach", NOBODY], ["status"]]


def nothing(folder: Path) -> Path:
    return folder / "nowhere.sock"


def below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "vm.sock"


def regular_file(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file"


def directory(folder: Path) -> Path:
    return folder


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def symbolic_link(folder: Path) -> Path:
    (folder / "link").symlink_to("/dev/null")
    return folder / "link"


def socket_of_the_dead(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "dead.sock"))
    return folder / "dead.sock"


def long_path_to_nothing(folder: Path) -> Path:
    return folder / ("d" * LONGEST_SUN_PATH) / "vm.sock"


@pytest.mark.parametrize("verb", VERBS, ids=["attach", "detach", "status"])
@pytest.mark.parametrize(
    ("make", "words", "hint"),
    [
        (nothing, "there is no monitor at", "start QEMU with -qmp unix:"),
        (below_a_file, "there is no monitor at", "start QEMU with -qmp unix:"),
        (regular_file, "is a regular file, not a socket", "-qmp"),
        (directory, "is a directory, not a socket", "-qmp"),
        (fifo, "is a FIFO, not a socket", "-qmp"),
        (symbolic_link, "is a symbolic link", "name the socket itself: /dev/null"),
        (socket_of_the_dead, "nobody listens at", "vfio-intx status"),
        (long_path_to_nothing, "there is no monitor at", "start QEMU with"),
    ],
)
def test_a_path_that_leads_to_no_monitor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str], make: Make, words: str, hint: str
) -> None:
    text = said(capsys, [*verb, "--qmp", str(make(tmp_path)), "--timeout", "1"], 1)
    assert words in text
    assert hint in text


@pytest.mark.parametrize("path", ["x" * 5000, "/tmp/" + "y" * 240])
def test_a_path_that_can_name_no_socket(capsys: pytest.CaptureFixture[str], path: str) -> None:
    assert "too long" in said(capsys, ["attach", NOBODY, "--qmp", path], 2)


def test_a_name_too_long_for_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Only by way of a shorter address can such a socket come to be.
    folder = os.open(tmp_path, os.O_PATH)
    name = "n" * 100
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        (tmp_path / "s").rename(tmp_path / name)
        text = said(capsys, ["attach", NOBODY, "--qmp", str(tmp_path / name), "--timeout", "1"], 2)
    os.close(folder)
    assert "is too long for an address" in text


def told(capsys: pytest.CaptureFixture[str], argv: list[str], timeouts: Sequence[float], words: str) -> str:
    """What it says when it fails with *words*, or at last: with a longer timeout wherever it came to fail sooner."""
    text = ""
    for seconds in timeouts:
        text = said(capsys, [*argv, "--timeout", str(seconds)], 1)
        if words in text:
            break
    return text


@pytest.mark.parametrize("verb", VERBS, ids=["attach", "detach", "status"])
@pytest.mark.parametrize(
    ("script", "timeouts", "words", "hint"),
    [
        (fake.silent, (0.1,), "did not answer within 0.1 s (deadline: QMP greeting)", "another client probably holds"),
        (fake.half_a_greeting, (0.1,), "deadline: QMP greeting", "or QEMU is stopped"),
        (fake.never_negotiates, fake.PATIENCE, "deadline: QMP negotiation", ""),
        (fake.saying(b"220 mail.example ESMTP\r\n"), (60,), "does not talk QMP", "made with -qmp"),
        (fake.saying(b"\x1b[2J\xff\n"), (60,), "does not talk QMP", "made with -qmp"),
        (lambda line: None, (60,), "hung up before its greeting", ""),
        (fake.refuses_negotiation, (60,), "QEMU refused qmp_capabilities", ""),
    ],
    ids=["silent", "half", "no negotiation", "mail", "bytes", "hangs up", "refuses"],
)
def test_a_peer_that_is_no_good(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: list[str],
    script: fake.Script,
    timeouts: Sequence[float],
    words: str,
    hint: str,
) -> None:
    with fake.serving(tmp_path / "vm.sock", script) as path:
        text = told(capsys, [*verb, "--qmp", str(path)], timeouts, words)
    assert words in text
    assert hint in text
    assert all(character.isprintable() for character in text.replace("\n", ""))


@pytest.mark.parametrize("verb", VERBS[1:], ids=["detach", "status"])
@pytest.mark.parametrize(
    ("script", "timeouts", "words"),
    [(fake.never_replies, fake.PATIENCE, "(deadline: q"), (fake.dies_on_command, (60,), "closed the connection")],
    ids=["no reply", "dies"],
)
def test_a_peer_that_fails_at_the_first_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: list[str],
    script: fake.Script,
    timeouts: Sequence[float],
    words: str,
) -> None:
    with fake.serving(tmp_path / "vm.sock", script) as path:
        text = told(capsys, [*verb, "--qmp", str(path)], timeouts, words)
    assert words in text


def test_a_late_greeting_is_no_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def script(line: fake.Line) -> None:
        threading.Event().wait(0.2)
        fake.refuses_negotiation(line)

    with fake.serving(tmp_path / "vm.sock", script) as path:
        assert "refused qmp_capabilities" in said(capsys, ["status", "--qmp", str(path), "--timeout", "60"], 1)


def test_a_monitor_that_another_client_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake.serving(tmp_path / "vm.sock", fake.never_replies) as path, socket.socket(socket.AF_UNIX) as other:
        other.connect(str(path))
        assert other.recv(1)
        text = said(capsys, ["attach", NOBODY, "--qmp", str(path), "--timeout", "0.3"], 1)
    assert "another client holds the monitor at" in text
    assert "second -qmp socket" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["attach", "zzz", "--qmp", "x"], "is not a PCI address"),
        (["attach", NOBODY, "--qmp", "x", "--scheme", "fast"], "is not a scheme"),
        (["attach", NOBODY, "--qmp", "x", "--id", "a b"], "is not a QEMU id"),
        (["attach", NOBODY, "--qmp", "x", "--bus", "a,b"], "is not a QEMU id"),
        (["attach", NOBODY, "--qmp", "x", "--timeout", "nan"], "is not a number of seconds"),
        (["attach", NOBODY, "--qmp", "x", "--timeout", "0"], "is not a number of seconds"),
        (["attach", NOBODY, "--qmp", "x", "--pid", "1"], "not allowed with argument"),
        (["attach", NOBODY], "one of the arguments"),
        (["attach", NOBODY, "--pid", "abc"], "a pid must be a whole number"),
        (["attach", NOBODY, "--pid", "-1"], "a pid must be a whole number"),
        (["attach", NOBODY, "--proxmox", "../../etc"], "a VMID must be a whole number"),
        (["attach", NOBODY, "--libvirt", "-c evil"], "is not the name of a libvirt domain"),
        (["attach", NOBODY, "--libvirt=--connect=x"], "is not the name of a libvirt domain"),
        (["detach", "0000:00:1f.0\n", "--qmp", "x"], "is not a PCI address"),
    ],
)
def test_arguments_that_mean_nothing(capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    assert words in said(capsys, argv, 2)


def test_a_process_that_is_no_qemu_or_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not QEMU" in said(capsys, ["attach", NOBODY, "--pid", str(os.getpid())], 1)
    assert "there is no process 2147483646" in said(capsys, ["attach", NOBODY, "--pid", "2147483646"], 1)


@pytest.mark.parametrize("verb", ["attach", "detach"])
def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    text = said(capsys, [verb, NOBODY, "--qmp", "nowhere.sock"], 1)
    assert "this needs root" in text
    assert "sudo" in text


def test_ctrl_c_ends_it_with_130_and_no_traceback(tmp_path: Path) -> None:
    heard = threading.Event()

    def script(line: fake.Line) -> None:
        line.negotiate()
        line.hear()
        heard.set()
        line.wait_for_hangup()

    with fake.serving(tmp_path / "vm.sock", script) as path:
        process = subprocess.Popen(
            [sys.executable, "-m", "vfio_intx", "status", "--qmp", str(path), "--timeout", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert heard.wait(60)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert errors == "vfio-intx status: interrupted\n"
