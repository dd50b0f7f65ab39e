"""The lab seen from the machine: statuses come back, deaths are told apart from failures, nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_intx.deadline import Deadline
from vfio_intx.errors import LabLost
from vfio_intx.lab.autopsy import REPORT
from vfio_intx.lab.play import results_folder
from vfio_intx.lab.run import PROJECT, run_in_lab
from vfio_intx.lab.spec import LabSpec

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

SPEC = LabSpec("6.12", memory_mib=1024)


@pytest.fixture
def results() -> Iterator[Path]:
    folder = results_folder()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def _of_this_lab(results: Path) -> list[bytes]:
    """The command lines that name the results folder: those of virtme-ng, QEMU and their watcher."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:  # it has ended since it was listed
            continue
        if str(results).encode() in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


def test_status_output_and_files_come_back_and_nothing_else(results: Path) -> None:
    lines: list[str] = []
    stray = PROJECT / "written-in-the-lab"
    command = f"echo 'one  two'; echo x > {stray}; cat {stray}; echo $PWD > {results}/file; exit 7"
    done = run_in_lab(SPEC, ["sh", "-c", command], results, Deadline.after("test", 280), lines.append)
    assert done.status == 7
    assert lines[-2:] == ["one  two", "x"]
    assert (results / "file").read_text() == f"{PROJECT}\n"
    assert not stray.exists()
    assert Deadline.after("the processes are reaped", 60).poll(lambda: not _of_this_lab(results))


def test_l1_is_nudged_by_interrupts_that_mean_nothing(results: Path) -> None:
    """Without them an L1 whose emulated CPU lost an interrupt waited for minutes."""
    count = "awk '$1 == \"1:\" {print $2}' /proc/interrupts"
    wait = f"n=$({count}); for i in $(seq 600); do [ $({count}) -gt $((n + 5)) ] && exit 0; sleep 0.1; done; exit 1"
    done = run_in_lab(SPEC, ["sh", "-c", wait], results, Deadline.after("test", 280), lambda line: None)
    assert done.status == 0


def test_a_panic_is_a_lost_lab_with_the_consoles_last_words(results: Path) -> None:
    crash = ["sh", "-c", "echo c > /proc/sysrq-trigger"]
    with pytest.raises(LabLost, match=r"died while its command was running: .*Kernel panic - not syncing: sysrq"):
        run_in_lab(SPEC, crash, results, Deadline.after("test", 280), lambda line: None)


def test_a_lab_that_does_not_end_is_looked_at_before_it_is_killed(results: Path) -> None:
    with pytest.raises(LabLost, match="the lab was stopped after 20 s") as caught:
        run_in_lab(SPEC, ["sleep", "1000"], results, Deadline.after("test", 20), lambda line: None)
    assert any("vCPU was at RIP=" in note and "a second later at RIP=" in note for note in caught.value.__notes__)
    assert "== second look: info registers" in (results / REPORT).read_text()
    assert Deadline.after("the processes are reaped", 60).poll(lambda: not _of_this_lab(results))


def test_a_killed_program_leaves_no_machine_behind(results: Path) -> None:
    program = f"""
from pathlib import Path
from vfio_intx.deadline import Deadline
from vfio_intx.lab.run import run_in_lab
from vfio_intx.lab.spec import LabSpec
spec, results = LabSpec("6.12", memory_mib=1024), Path({str(results)!r})
run_in_lab(spec, ["sleep", "1000"], results, Deadline.after("test", 1000), lambda line: None)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        assert Deadline.after("QEMU's start", 120).poll(lambda: (results / "console").exists() and _qemu_runs(results))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert Deadline.after("death of all", 60).poll(lambda: not _of_this_lab(results))


def _qemu_runs(results: Path) -> bool:
    return any(b"qemu-system" in line for line in _of_this_lab(results))
