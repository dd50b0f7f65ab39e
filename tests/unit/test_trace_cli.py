"""``vfio-intx trace``: what is wrong with an argument is said before anything is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.script import DEVICE, MAIN, Script, join
from tests.unit.test_export import many, report_of
from vfio_intx.cli.main import main
from vfio_intx.cli.trace import _print_table, _words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a line"),
        (["--gsi", "20"], "name a line"),
        (["--pid", "1"], "name a line"),
        (["--pid", "one", "--gsi", "20"], "--pid must be a whole number"),
        (["--pid", "1", "--gsi", "-1"], "gsi"),
        (["--pid", "1", "--gsi", "4096"], "--gsi must be a whole number from 0 to 4095"),
        (["--pid", "1", "--gsi", "20", "--seconds", "0"], "--seconds must be a positive number"),
        (["--pid", "1", "--gsi", "20", "--seconds", "nan"], "--seconds must be a positive number"),
        (["--pid", "1", "--gsi", "20", "--count", "0"], "--count must be a whole number"),
        (["--pid", "1", "--gsi", "20", "--buffer-kb", "1"], "--buffer-kb must be a whole number from 64"),
        (["05:00.9"], "is not a PCI address"),
        (["--no-such"], "unrecognized arguments"),
    ],
)
def test_a_malformed_argument_is_a_usage_error(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0000:ff:1f.7"], "no interrupt line of this host is handled for 0000:ff:1f.7"),
        (["--pid", "4194304", "--gsi", "20"], "there is no process 4194304"),
    ],
)
def test_a_line_that_is_not_there_is_one_message(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", *words]) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert "try:" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("option", ["--spans", "--perfetto", "--html", "--json-to"])
def test_an_export_into_a_folder_that_is_not_there_fails_before_the_run(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "--pid", "1", "--gsi", "20", "--seconds", "600", option, str(tmp_path / "no/file")]) == 1
    assert "ENOENT" in capsys.readouterr().err


def test_two_results_into_one_file_are_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, same = tmp_path / "out", tmp_path / "." / "out"
    words = ["trace", "--pid", "1", "--gsi", "20", "--spans", str(one), "--perfetto"]
    assert main([*words, str(same)]) == 2
    assert "--spans and --perfetto name the same file" in capsys.readouterr().err


def test_the_table_has_every_stage_and_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    _print_table(report_of(many(50)), "GSI 20 of process 7")
    out = capsys.readouterr().out
    for word in ("route", "deliver", "eoi", "resample", "whole", "p99.9", "irqfd", "cost:"):
        assert word in out


def test_the_words_below_it_tell_of_all_that_was_odd() -> None:
    script = Script().irqfd()
    for _ in range(30):
        script.add(10, MAIN, 0, 99).add(11, 101, 2, 20)
    words = "\n".join(_words(report_of(join(script))))
    assert "30 orphan-ack" in words
    assert "more of them" in words
    nothing = "\n".join(_words(report_of(join(Script()))))
    assert "No interrupt of this line was seen" in nothing
    assert "try: vfio-intx status" in nothing


def test_a_line_that_only_the_host_hears_of_is_not_called_quiet() -> None:
    words = "\n".join(_words(report_of(join(Script().host(), DEVICE))))
    assert "handler ran 1 times on the host" in words
    assert "kick" in words
    assert "the card is quiet" not in words


def test_of_no_interrupt_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    _print_table(report_of(join(Script())), "GSI 20 of process 7")
    out = capsys.readouterr().out
    assert out.startswith("GSI 20 of process 7, 0 interrupts in ")
    assert "stage" not in out


def test_a_process_without_a_vm_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--pid", str(os.getpid()), "--gsi", "20", "--seconds", "600"]) == 1
    assert f"process {os.getpid()} has no VM of KVM" in capsys.readouterr().err


def test_a_number_that_cannot_be_meant_is_said_before_the_machine_is_looked_at() -> None:
    assert main(["trace", "0000:ff:1f.7", "--seconds", "0"]) == 2
