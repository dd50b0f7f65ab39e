"""Records: whole or refused; the lock: one process at a time; the real machine's writes: errno and deadline kept."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.kernel import FakeKernel
from vfio_intx.cli import bind as cli_bind
from vfio_intx.cli import restore as cli_restore
from vfio_intx.cli import unbind as cli_unbind
from vfio_intx.deadline import Deadline
from vfio_intx.errors import BusyError, KernelError, MissingError, RefusedError, UsageError, WorldError
from vfio_intx.host.pci import PciIds
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.wiring import journal
from vfio_intx.wiring.apply import LocalMachine, StuckWrite
from vfio_intx.wiring.drivers import bind, restore
from vfio_intx.wiring.journal import BadRecord, Record, decode, encode, open_state, read_all, state_path
from vfio_intx.wiring.steps import Binding, Write

BDF = Bdf.parse("0000:00:10.0")
NIC = str(BDF)
RECORD = Record(
    BDF, PciIds(0x8086, 0x100E, 0, 0, 0x020000), Binding("e1000", ""), Binding("vfio-pci", "vfio-pci"), settled=False
)


def test_a_record_comes_back_as_it_was() -> None:
    assert decode(encode(RECORD), "x") == RECORD
    assert decode(encode(RECORD.settle()), "x").settled


def test_a_record_cut_at_any_byte_is_refused() -> None:
    whole = encode(RECORD)
    for length in range(len(whole)):
        with pytest.raises(BadRecord):
            decode(whole[:length], "x")


@given(st.integers(0, len(encode(RECORD)) * 8 - 1))
def test_a_record_with_any_bit_flipped_is_refused(bit: int) -> None:
    raw = bytearray(encode(RECORD))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadRecord):
        decode(bytes(raw), "x")


def test_a_record_of_a_newer_version_is_refused_by_name() -> None:
    newer = encode(RECORD).replace(b"vfio-intx-record 1 ", b"vfio-intx-record 2 ")
    with pytest.raises(BadRecord, match="version '2'"):
        decode(newer, "x")


@pytest.mark.parametrize("driver", ["../../x", "a/b", "e1000\n", "x" * 70])
def test_a_record_whose_driver_would_be_a_path_is_refused(driver: str) -> None:
    sly = Record(RECORD.bdf, RECORD.ids, Binding(driver, ""), RECORD.goal, settled=True)
    with pytest.raises(BadRecord, match="does not hold a record"):
        decode(encode(sly), "x")


def test_nothing_is_done_on_the_word_of_a_damaged_record(kernel: FakeKernel, tmp_path: Path) -> None:
    state = tmp_path / "state"
    bind(kernel, state, [BDF])
    file = state / f"{NIC}.record"
    file.write_bytes(file.read_bytes()[:-3])
    before = list(kernel.log)
    for attempt in (lambda: restore(kernel, state, BDF), lambda: bind(kernel, state, [BDF])):
        with pytest.raises(BadRecord, match="checksum"):
            attempt()
    assert kernel.log == before


def test_a_record_of_another_function_or_a_link_in_its_place_is_refused(kernel: FakeKernel, tmp_path: Path) -> None:
    state = tmp_path / "state"
    bind(kernel, state, [BDF])
    (state / f"{NIC}.record").rename(state / "0000:00:11.0.record")
    (state / "0000:00:12.0.record").symlink_to(state / "0000:00:11.0.record")
    with open_state(state) as opened:
        for other in ("0000:00:11.0", "0000:00:12.0"):
            with pytest.raises(BadRecord):
                opened.read(Bdf.parse(other))
        good, bad = read_all(opened)
    assert (good, len(bad)) == ((), 2)


def test_what_stands_in_a_record_s_place_is_refused_and_never_waited_for(kernel: FakeKernel, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with open_state(state) as opened:
        os.mkfifo(state / f"{NIC}.record")
        with pytest.raises(BadRecord):
            opened.read(BDF)
        (state / f"{NIC}.record").unlink()
        (state / f"{NIC}.record").mkdir()
        with pytest.raises(BadRecord):
            opened.read(BDF)
        with pytest.raises(WorldError, match="cannot be removed"):
            opened.remove(BDF)


def test_a_lock_that_is_no_file_of_ours_is_refused(kernel: FakeKernel, tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    for state in (folder, link):
        state.mkdir(mode=0o700)
    (folder / "lock").mkdir()
    (link / "lock").symlink_to(tmp_path / "elsewhere")
    for state in (folder, link):
        with pytest.raises(RefusedError, match=r"the lock .* cannot be opened"):
            bind(kernel, state, [BDF])
    assert kernel.state(NIC) == ("e1000", "")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_of_another_name_is_none_of_our_records(
    kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_state(tmp_path / "state") as state:
        for name in ("notes.record", "00:10.0.record", ".record"):
            (tmp_path / "state" / name).write_text("mine")
        assert state.recorded() == ()
    assert cli_bind.run(arguments(tmp_path), kernel) == 0
    assert capsys.readouterr().err == ""


def test_a_record_that_cannot_be_written_stops_everything_before_the_first_change(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / f"{NIC}.record.new").mkdir()
    with pytest.raises(WorldError, match="cannot be written"):
        bind(kernel, state, [BDF])
    assert kernel.state(NIC) == ("e1000", "")


def test_a_second_process_waits_for_the_lock_and_says_who_is_in_the_way(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LOCK_BUDGET_S", 0.05)
    with open_state(tmp_path / "state"), pytest.raises(BusyError, match="another vfio-intx"):
        bind(kernel, tmp_path / "state", [BDF])
    assert kernel.state(NIC) == ("e1000", "")
    bind(kernel, tmp_path / "state", [BDF])


def test_a_holder_of_the_lock_that_is_killed_lets_go(kernel: FakeKernel, tmp_path: Path) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with open_state(tmp_path / "state"):
            os.write(told, b"x")
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(told)
    assert bind(kernel, tmp_path / "state", [BDF])[0].writes


def test_where_records_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VFIO_INTX_STATE", raising=False)
    assert state_path(None) == Path("/var/lib/vfio-intx")
    monkeypatch.setenv("VFIO_INTX_STATE", "/run/x")
    assert state_path(None) == Path("/run/x")
    assert state_path("/given") == Path("/given")
    with pytest.raises(UsageError, match="absolute"):
        state_path("relative")


def test_a_state_directory_that_is_a_file_is_refused(kernel: FakeKernel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedError, match="cannot be used"):
        bind(kernel, tmp_path / "file", [BDF])


def soon() -> Deadline:
    return Deadline.after("test write", 0.2)


def in_time() -> Deadline:
    return Deadline.after("test write", 60)


def test_the_real_machine_writes_a_line_and_keeps_the_errno(tmp_path: Path) -> None:
    machine = LocalMachine(HostRoot(tmp_path))
    (tmp_path / "sys").mkdir()
    (tmp_path / "sys/file").write_text("")
    machine.write(Write("/sys/file", "vfio-pci"), in_time())
    assert (tmp_path / "sys/file").read_text() == "vfio-pci\n"
    for name, code in (("absent", errno.ENOENT), ("", errno.EISDIR)):
        with pytest.raises(KernelError) as caught:
            machine.write(Write(f"/sys/{name}", "x"), in_time())
        assert caught.value.errno == code


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    os.mkfifo(tmp_path / "unbind")
    yield tmp_path / "unbind"
    # Let the child that was left behind come to its end, also where it gets to its open() only now.
    reader = os.open(tmp_path / "unbind", os.O_RDONLY | os.O_NONBLOCK)
    os.waitpid(-1, 0)
    os.close(reader)


def test_a_write_that_does_not_come_back_is_left_at_its_deadline(fifo: Path) -> None:
    machine = LocalMachine(HostRoot(fifo.parent))
    with pytest.raises(StuckWrite) as caught:
        machine.write(Write("/unbind", NIC), soon())
    assert caught.value.errno == errno.ETIMEDOUT


def test_no_process_to_write_by_is_an_errno_and_leaves_no_signal_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "the cgroup has its most processes")

    monkeypatch.setattr("os.fork", fork)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(KernelError) as caught:
        LocalMachine(HostRoot(tmp_path)).write(Write("/x", "y"), soon())
    assert caught.value.errno == errno.EAGAIN
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_modprobe_that_no_kill_can_end_is_left_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modprobe").write_text("#!/bin/sh\nexec sleep 1000\n")
    (tmp_path / "modprobe").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("vfio_intx.wiring.apply._KILL_S", 0.05)
    spared: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(
        subprocess.Popen, "kill", lambda process: spared.append(process)
    )  # as the kernel does while it hangs
    with pytest.raises(MissingError, match=r"did not end within 0\.2 s"):
        LocalMachine().load_module("vfio-pci", soon())
    (process,) = spared
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_module_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no_such_module_of_ours"):
        LocalMachine().load_module("no_such_module_of_ours", Deadline.after("modprobe", 60))


def arguments(tmp_path: Path, **more: object) -> argparse.Namespace:
    given = {"bdf": "00:10.0", "dry_run": False, "state_dir": str(tmp_path / "state"), "group": False, "force": False}
    return argparse.Namespace(**(given | more))


def test_the_verbs_tell_what_they_did(kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (cli_bind, cli_bind, cli_unbind, cli_unbind, cli_restore, cli_restore):
        assert verb.run(arguments(tmp_path), kernel) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{NIC}: e1000 -> vfio-pci (driver_override vfio-pci)",
        f"{NIC}: already so: vfio-pci (driver_override vfio-pci)",
        f"{NIC}: vfio-pci (driver_override vfio-pci) -> no driver",
        f"{NIC}: already so: no driver",
        f"{NIC}: no driver -> e1000",
        f"{NIC}: already so: e1000",
    ]


class Signalled(FakeKernel):
    """A kernel whose user's terminal ends, or whose service is stopped, when the first driver has let go."""

    number = signal.SIGTERM

    def write(self, write: Write, deadline: Deadline) -> None:
        super().write(write, deadline)
        if write.path.endswith("e1000/unbind"):
            signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_no_function_without_its_driver(
    kernel: FakeKernel, tmp_path: Path, number: signal.Signals
) -> None:
    before = [(each, signal.getsignal(each)) for each in (signal.SIGTERM, signal.SIGHUP)]
    signalled = Signalled(kernel.tree, kernel.matches)
    signalled.number = number
    try:
        with pytest.raises(KeyboardInterrupt):
            cli_bind.run(arguments(tmp_path), signalled)
    finally:
        for each, handler in before:
            signal.signal(each, handler)
    assert kernel.state(NIC) == ("e1000", "")
    assert not list((tmp_path / "state").glob("*.record"))


def test_a_dry_run_prints_exactly_what_a_run_then_writes(
    kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in (cli_bind, cli_restore):
        kernel.log.clear()
        verb.run(arguments(tmp_path, dry_run=True), kernel)
        printed = capsys.readouterr().out.splitlines()
        assert kernel.log == []
        verb.run(arguments(tmp_path), kernel)
        capsys.readouterr()
        assert printed == kernel.log
    verb.run(arguments(tmp_path, dry_run=True), kernel)
    assert capsys.readouterr().out == f"{BDF}: nothing to do\n"


def test_a_verb_tells_of_another_function_that_was_left_in_the_middle(
    kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Record(Bdf.parse("0000:00:11.0"), RECORD.ids, RECORD.first, RECORD.goal, settled=False)
    with open_state(tmp_path / "state") as state:
        state.write(other)
    (tmp_path / "state/0000:00:12.0.record").write_text("torn")
    assert cli_bind.run(arguments(tmp_path), kernel) == 0
    told = capsys.readouterr().err
    assert "vfio-intx restore 0000:00:11.0" in told
    assert "0000:00:12.0.record is not a whole record" in told
