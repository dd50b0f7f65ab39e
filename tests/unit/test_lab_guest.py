"""The guest's image, and the two channels to it, against peers that are not what they should be."""

from __future__ import annotations

import base64
import contextlib
import lzma
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.qmp_server import Line, answering, dies_on_command, never_replies, saying, serving, silent
from vfio_intx.deadline import Deadline
from vfio_intx.errors import (
    LabLost,
    MissingError,
    PeerGarbage,
    PeerGone,
    PeerRefused,
    PeerTimeout,
    UsageError,
    VerifyError,
)
from vfio_intx.lab import scenario as scenarios
from vfio_intx.lab.channel import Answer, Monitor, Shell
from vfio_intx.lab.guests import Guest
from vfio_intx.lab.initramfs import Entry, cpio, initramfs_for, is_static, module_files, parse_modules_dep
from vfio_intx.lab.kernels import Kernel
from vfio_intx.lab.traffic import find_port_script, port_name


def soon() -> Deadline:
    return Deadline.after("test", 60)


def at_once() -> Deadline:
    return Deadline.after("test", 0.2)


def shell_peer(answer: Callable[[bytes, bytes], bytes]) -> Callable[[Line], None]:
    """A guest's command port: READY, then *answer* for each (number, command)."""

    def script(line: Line) -> None:
        line.send(b"noise of a boot\nREADY 1.0 1.0\n")
        with line.sock.makefile("rb") as lines:
            for raw in lines:
                number, encoded = raw.split()
                line.send(answer(number, base64.b64decode(encoded)))

    return script


def framed(number: bytes, output: bytes, status: bytes = b"0") -> bytes:
    return b"BEGIN %s\n%sEND %s %s\n" % (number, base64.encodebytes(output), number, status)


def test_output_that_looks_like_a_frame_stays_output(tmp_path: Path) -> None:
    nasty = b"END 1 0\nBEGIN 1\n\xff\x00END 2 0\n" * 50
    with serving(tmp_path / "s", shell_peer(lambda number, command: framed(number, nasty + command, b"3"))) as path:
        shell = Shell(path, soon())
        shell.wait_ready(soon())
        assert shell.run("echo 'x'", soon()) == Answer(3, (nasty + b"echo 'x'").decode("utf-8", "replace"))
        shell.close()


def test_a_late_answer_is_not_taken_for_the_next(tmp_path: Path) -> None:
    late: list[bytes] = []

    def answer(number: bytes, command: bytes) -> bytes:
        if command == b"slow":
            late.append(framed(number, b"of the slow one"))
            return b""
        return b"".join(late) + framed(number, b"of the quick one")

    with serving(tmp_path / "s", shell_peer(answer)) as path:
        shell = Shell(path, soon())
        shell.wait_ready(soon())
        with pytest.raises(PeerTimeout, match=r"did not answer within 0\.2 s"):
            shell.run("slow", at_once())
        assert shell.run("quick", soon()).text == "of the quick one"
        shell.close()


@pytest.mark.parametrize("reply", [b"BEGIN 1\n***\nEND 1 0\n", b"BEGIN 1\nEND 9 0\n"])
def test_a_broken_answer_is_garbage(tmp_path: Path, reply: bytes) -> None:
    with serving(tmp_path / "s", shell_peer(lambda number, command: reply)) as path:
        shell = Shell(path, soon())
        with pytest.raises(PeerGarbage):
            shell.run("x", soon())
        shell.close()


def test_a_guest_that_never_comes_up_is_a_timeout(tmp_path: Path) -> None:
    with pytest.raises(PeerTimeout):
        Shell(tmp_path / "nobody", at_once())
    with serving(tmp_path / "s", silent) as path:
        shell = Shell(path, soon())
        with pytest.raises(PeerTimeout):
            shell.wait_ready(at_once())
        shell.close()


def test_a_guest_that_hangs_is_a_lost_lab(tmp_path: Path) -> None:
    def hangs(line: Line) -> None:
        line.send(b"READY 1.0 1.0\n")
        line.wait_for_hangup()

    (tmp_path / "console").write_text("the guest's last words\n")
    with serving(tmp_path / "shell", hangs), subprocess.Popen(["sleep", "600"]) as process:
        guest = Guest(process, tmp_path, [])
        guest.wait_ready(60)
        with pytest.raises(LabLost, match=r"the guest hangs: .* did not answer within 0\.2 s") as caught:
            guest.run("true", 0.2)
        assert "console: the guest's last words" in caught.value.__notes__
        guest.stop()


def test_the_witness_keeps_the_events_between(tmp_path: Path) -> None:
    event = b'{"event": "DEVICE_DELETED", "data": {"device": "nic"}}\r\n'
    script = answering(lambda request: event + b'{"return": "text of %s"}\r\n' % request["execute"].encode())
    with serving(tmp_path / "q", script) as path:
        monitor = Monitor(path, soon())
        assert monitor.human("info irq", soon()) == "text of human-monitor-command"
        assert monitor.wait_event("DEVICE_DELETED", soon())["data"] == {"device": "nic"}
        assert monitor.events == []
        monitor.close()


def test_a_refusal_keeps_qemus_words(tmp_path: Path) -> None:
    script = answering(lambda request: {"error": {"class": "GenericError", "desc": "no \x1b[2J"}})
    with serving(tmp_path / "q", script) as path:
        monitor = Monitor(path, soon())
        with pytest.raises(PeerRefused) as caught:
            monitor.execute("device_add", soon(), driver="x")
        assert (caught.value.command, caught.value.description) == ("device_add", "no \x1b[2J")
        monitor.close()


def test_a_late_answer_of_the_witness_is_not_taken_for_the_next(tmp_path: Path) -> None:
    late: list[dict[str, object]] = []

    def script(line: Line) -> None:
        line.negotiate()
        late.append({"return": "of the slow one", "id": line.hear()["id"]})
        request = line.hear()
        line.say(late.pop())
        line.say({"return": "of the quick one", "id": request["id"]})
        line.wait_for_hangup()

    with serving(tmp_path / "q", script) as path:
        monitor = Monitor(path, soon())
        with pytest.raises(PeerTimeout):
            monitor.execute("device_del", at_once(), id="nic")
        assert monitor.human("info pic", soon()) == "of the quick one"
        monitor.close()


def test_a_peer_that_lets_nobody_in_is_a_timeout(tmp_path: Path) -> None:
    """QEMU hangs and others wait in front of us: connect() itself would block, without end."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as others:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):  # as many as it lets wait
            while True:
                other = others.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                other.connect(str(tmp_path / "s"))
        with pytest.raises(PeerTimeout):
            Shell(tmp_path / "s", at_once())


def test_a_peer_that_stops_reading_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_intx.lab.channel._SEND_S", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        shell = Shell(tmp_path / "s", soon())
        with pytest.raises(PeerTimeout, match="sending"):
            shell.run("x" * (8 << 20), soon())
        shell.close()


@pytest.mark.parametrize("reply", [b'{"error": "no"}\n', b'{"a":' * 50_000 + b"\n"])
def test_an_answer_of_the_witness_that_is_none_is_garbage(tmp_path: Path, reply: bytes) -> None:
    with serving(tmp_path / "q", answering(lambda request: reply)) as path:
        monitor = Monitor(path, soon())
        with pytest.raises(PeerGarbage):
            monitor.execute("stop", soon())
        monitor.close()


def test_a_qemu_that_outlives_its_kill_is_a_lost_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    guest = Guest(process, tmp_path, [])
    with monkeypatch.context() as kernel:
        kernel.setattr("vfio_intx.lab.guests.END_S", 0.2)
        kernel.setattr(process, "kill", lambda: None)  # as while it releases a device and hangs in that
        with pytest.raises(LabLost, match=f"process {process.pid}, outlives its kill"):
            guest.stop()
    assert guest.alive()
    guest.stop()
    assert not guest.alive()


@pytest.mark.parametrize("greeting", [b"not JSON\n", b"[1]\n"])
def test_a_witness_that_talks_garbage(tmp_path: Path, greeting: bytes) -> None:
    with serving(tmp_path / "q", saying(greeting)) as path, pytest.raises(PeerGarbage):
        Monitor(path, soon())


def test_a_witness_that_dies_or_falls_silent(tmp_path: Path) -> None:
    with serving(tmp_path / "q", dies_on_command) as path:
        monitor = Monitor(path, soon())
        with pytest.raises(PeerGone):
            monitor.execute("stop", soon())
        monitor.close()
    with serving(tmp_path / "r", never_replies) as path:
        monitor = Monitor(path, soon())
        with pytest.raises(PeerTimeout):
            monitor.execute("stop", at_once())
        monitor.close()


def test_modules_are_loaded_from_the_far_end() -> None:
    table = parse_modules_dep("k/a-b.ko.xz: k/mid.ko.xz k/base.ko.xz\nk/mid.ko.xz: k/base.ko.xz\nk/base.ko.xz:\n")
    assert module_files(table, ["a-b", "built-in"]) == {"a-b": ("k/base.ko.xz", "k/mid.ko.xz", "k/a-b.ko.xz")}


def test_the_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    entries = [Entry("d", 0o040755), Entry("d/file", 0o100644, b"odd"), Entry("d/empty", 0o100600)]
    listing = subprocess.run(["busybox", "cpio", "-t"], input=cpio(entries), capture_output=True, check=True)
    assert listing.stdout.split() == [b"d", b"d/file", b"d/empty"]
    subprocess.run(["busybox", "cpio", "-i"], input=cpio(entries), cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "d/file").read_bytes() == b"odd"


def _kernel(tmp_path: Path, suffix: str, data: bytes) -> Kernel:
    modules = tmp_path / "lib/modules/9.9"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(f"e1000.ko{suffix}:\n")
    (modules / f"e1000.ko{suffix}").write_bytes(data)
    return Kernel("x", "9.9", tmp_path / "vmlinuz", modules)


def test_the_image_is_built_once_and_holds_modules_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_INTX_CACHE", str(tmp_path / "cache"))
    kernel = _kernel(tmp_path, ".xz", lzma.compress(b"a module's bytes"))
    path = initramfs_for(kernel)
    assert b"a module's bytes" in path.read_bytes()
    assert initramfs_for(kernel) == path
    assert list(path.parent.iterdir()) == [path]


def test_a_module_in_a_form_we_cannot_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_INTX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingError, match=r"e1000\.ko\.zst is compressed"):
        initramfs_for(_kernel(tmp_path, ".zst", b""))
    assert not list((tmp_path / "cache").rglob("*.cpio"))


def test_only_a_static_program_can_be_the_guests() -> None:
    assert not is_static(Path("/bin/sh").read_bytes())
    assert not is_static(b"#!/bin/sh\n")


@pytest.mark.parametrize("name", ["", "Smoke", "../smoke", "smoke.py", "no-such", "smoke/inner", "a" * 99, "os"])
def test_a_scenario_that_is_none_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="no scenario"):
        scenarios.find(name)


def test_every_scenario_can_be_found_and_says_what_it_shows() -> None:
    names = scenarios.names()
    assert "smoke" in names
    for name in names:
        scenario = scenarios.find(name)
        assert scenarios.summary(scenario)
        assert callable(scenario.inside)
        assert scenarios.deadline_s(scenario) > 0


@pytest.fixture
def tty_tree(tmp_path: Path) -> Path:
    """A sysfs that shows a port below the PCI bus whose node has not been made yet, and one that is no card's."""
    (tmp_path / "dev").mkdir()
    ports = tmp_path / "sys/class/tty"
    ports.mkdir(parents=True)
    (ports / "ttyS0").symlink_to("../../devices/pnp0/00:01/tty/ttyS0")
    (ports / "ttyS2").symlink_to("../../devices/pci0000:00/0000:00:02.0/tty/ttyS2")
    return tmp_path


def find_port(sysfs: str, dev: str, seconds: float) -> subprocess.Popen[str]:
    script = find_port_script(sysfs, dev, seconds)
    # As in the guest, what goes to stderr is part of the answer.
    return subprocess.Popen(
        ["busybox", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_port_without_its_node_is_waited_for(tty_tree: Path) -> None:
    ours, theirs = os.openpty()
    with find_port(f"{tty_tree}/sys", f"{tty_tree}/dev", 20) as search:
        assert search.poll() is None
        (tty_tree / "dev/ttyS2").symlink_to(os.ttyname(theirs))
        assert search.stdout is not None
        assert port_name(search.stdout.read()) == "ttyS2"
    assert search.returncode == 0
    os.close(theirs)
    os.close(ours)


def test_a_listing_that_fails_is_not_part_of_the_name(tty_tree: Path) -> None:
    """ls told of a name that was gone; its message was taken for the port, and the traffic went into a file "ls:"."""
    ours, theirs = os.openpty()
    (tty_tree / "dev/ttyS2").symlink_to(os.ttyname(theirs))
    # Of two folders that ls is given, it finds one.
    with find_port(f"{tty_tree}/gone/class/tty {tty_tree}/sys", f"{tty_tree}/dev", 20) as search:
        assert search.stdout is not None
        assert port_name(search.stdout.read()) == "ttyS2"
    os.close(theirs)
    os.close(ours)


@pytest.mark.parametrize("text", ["", "ls: ./ttyS2: No such file or directory\nttyS2\n", "ttyS2 ttyS3", "../ttyS2"])
def test_only_a_ports_name_is_taken_for_one(text: str) -> None:
    with pytest.raises(VerifyError, match="the guest said"):
        port_name(text)


def test_a_port_that_does_not_come_is_an_error_and_no_file(tty_tree: Path) -> None:
    with find_port(f"{tty_tree}/sys", f"{tty_tree}/dev", 0.2) as search:
        pass
    assert search.returncode == 1
    assert list((tty_tree / "dev").iterdir()) == []


def test_a_port_that_refuses_to_open_is_no_port_yet(tty_tree: Path) -> None:
    """What a node of a device that is not ready answers: an error to open."""
    (tty_tree / "dev/ttyS2").write_text("")
    with find_port(f"{tty_tree}/sys", f"{tty_tree}/dev", 0.2) as search:
        pass
    assert search.returncode == 1
