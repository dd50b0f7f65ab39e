"""selftest and bench as programs, on a real /dev/kvm and on hosts without one."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vfio_intx.cli.main import main
from vfio_intx.cli.output import print_error
from vfio_intx.deadline import Deadline
from vfio_intx.errors import MissingError
from vfio_intx.host.root import HostRoot
from vfio_intx.microvm.trials import Ground, Row, Verdict, is_usable, run_trials
from vfio_intx.microvm.trials.churn import ROUNDS

PROGRAM = [sys.executable, "-m", "vfio_intx"]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=80)


def _rows(kvm_fd: int) -> list[Row]:
    return list(run_trials(Ground(kvm_fd, lambda: sum(1 for _ in Path("/proc/self/fd").iterdir()))))


@pytest.mark.kvm
def test_every_trial_ends_as_a_kernel_may_end_it(kvm_fd: int) -> None:
    rows = _rows(kvm_fd)
    assert is_usable(rows)
    assert [row for row in rows if row.verdict is Verdict.FAIL] == []
    # What a backend that acknowledges early is known for is the one warning that a usable host may have.
    warned = [row.name for row in rows if row.verdict is Verdict.WARN]
    assert all(name.startswith("no acknowledge before the EOI") for name in warned), warned
    assert len({row.name for row in rows}) == len(rows)
    assert f"{ROUNDS} times wired and unwired" in {row.name for row in rows}


@pytest.mark.kvm
def test_a_host_is_usable_only_if_the_proof_was_reached(kvm_fd: int) -> None:
    rows = _rows(kvm_fd)
    assert not is_usable([row for row in rows if not row.name.startswith("irqfd with resample, IOAPIC")])
    broken = Row("two cards on one GSI", "", "", Verdict.FAIL, "", required=True)
    assert not is_usable([*rows, broken])


@pytest.mark.kvm
def test_selftest_as_a_program() -> None:
    done = _run("selftest", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert said["schema"] == "vfio-intx/selftest/1"
    assert said["usable"] is True
    assert {"name", "expected", "seen", "verdict", "required", "meaning"} == said["rows"][0].keys()


def cpu_seconds(pid: int) -> float:
    """What a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.kvm
def test_bench_as_a_program(tmp_path: Path) -> None:
    picture = tmp_path / "bench.svg"
    done = _run("bench", "--count", "300", "--scheme", "irqfd", "--scheme", "edge", "--json", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["schema"] == "vfio-intx/bench/1"
    assert [(row["scheme"], row["pin"]) for row in said["schemes"]] == [
        ("irqfd", "ioapic"),
        ("edge", "ioapic"),
        ("irqfd", "pic"),
        ("edge", "pic"),
    ]
    assert said["schemes"][0]["vmm_wakeups_per_interrupt"] == 0
    assert picture.read_text().startswith("<svg")


@pytest.mark.kvm
def test_an_interrupted_bench_says_so_and_prints_what_it_has() -> None:
    with subprocess.Popen(
        [*PROGRAM, "bench", "--ceiling", "--seconds", "60", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        line = process.stderr.readline()
        assert line == f"ceiling: pid {process.pid} gsi 20\n"
        process.send_signal(signal.SIGINT)
        said = json.loads(process.stdout.read())
        assert process.wait(60) == 130
    assert said["partial"] is True


@pytest.mark.kvm
def test_two_interrupts_of_a_long_race_leave_the_rounds_that_ended() -> None:
    # As timeout(1) sends them, to the program and to its group, or an impatient user.
    with subprocess.Popen(
        [*PROGRAM, "bench", "--scheme", "irqfd", "--count", "10000000", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert Deadline.after("a round", 60.0).poll(lambda: cpu_seconds(process.pid) > 2.0)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, "interrupted; these are the figures" in err) == (130, True)
    said = json.loads(out)
    assert said["partial"] is True
    assert said["schemes"][0]["triggers"] >= 1000


@pytest.mark.parametrize("count", ["0", "-1", "1000000000", "many", "1e3", ""])
def test_a_count_out_of_bounds_is_a_usage_error(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"--count={count}"]) == 2
    said = capsys.readouterr().err
    assert "--count must be a whole number from 1 to 10000000" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "arguments",
    [["--plot", "a.png"], ["--plot", "/nowhere/at/all/a.svg"], ["--scheme", "magic"], ["--seconds", "3"]],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") >= 1
    assert "Traceback" not in said


@pytest.mark.parametrize("verb", ["selftest", "bench"])
def test_a_host_without_kvm_gets_a_clear_word(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"vfio_intx.cli.{verb}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    for what, said in (("nothing", "does not exist"), ("a file", "is not KVM")):
        if what == "a file":
            (tmp_path / "dev").mkdir()
            (tmp_path / "dev/kvm").touch()
        with pytest.raises(MissingError, match=said) as caught:
            module.run(parser.parse_args([]), HostRoot(tmp_path))
        assert print_error("vfio-intx", caught.value) == 1
        assert "try:" in capsys.readouterr().err
