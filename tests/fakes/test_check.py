"""``check`` as a monitoring system runs it: what it reads is the first line of stdout and the exit status."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.cli import check, scan
from vfio_intx.cli.main import main
from vfio_intx.host.root import HostRoot


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tree = nic_host(tmp_path / "host").tree
    monkeypatch.setattr(check, "run", functools.partial(check.run, root=tree.root))
    return tree.path


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["00:1f.7"], "UNKNOWN: 00:1f.7: there is no PCI function 0000:00:1f.7"),
        (["nonsense"], "UNKNOWN: nonsense: 'nonsense' is not a PCI address"),
        (["00:10.0|x"], "UNKNOWN: 00:10.0/x: '00:10.0/x' is not a PCI address"),
        (["00:10.0", "--qemu-log", "/nowhere/vm.log"], "UNKNOWN: 00:10.0: /nowhere/vm.log cannot be read"),
        (["00:10.0", "--nonsense"], "UNKNOWN: unrecognized arguments: --nonsense"),
        ([], "UNKNOWN: the following arguments are required: BDF"),
    ],
)
def test_what_keeps_it_from_an_answer_is_in_the_line_that_a_monitoring_system_shows(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *words]) == 3
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    assert line.startswith(why)
    assert printed.err.startswith("vfio-intx check: ")
    assert "  try: " in printed.err or "--qemu-log" in words


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("machine", "scheme"),
    [
        ("pc", "irqfd"),
        ("q35", "irqfd"),
        ("pc-i440fx-7.2", "irqfd"),
        ("pc-i440fx-9.2+pve0", "irqfd"),
        ("pc-q35-rhel9.4.0", "irqfd"),
        ("microvm", "irqfd"),
        ("pc-q35-4.0", "split"),
        ("pc-q35-4.0-machine", "split"),
    ],
)
def test_a_machine_type_tells_the_irqchip_also_as_status_names_it(
    machine: str, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", "00:10.0", "--machine", machine, "--json"])
    assert json.loads(capsys.readouterr().out)["scheme"]["name"] == scheme


@pytest.mark.usefixtures("host")
def test_a_reader_of_json_gets_no_line_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "00:1f.7", "--json"]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "there is no PCI function" in printed.err


def test_on_a_terminal_its_lines_are_broken_between_words_but_for_what_may_be_a_command(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = FakeTree(host)
    tree.add(FakeFunction("0000:00:10.1", driver="snd_hda_intel", group=4, irq=21))
    assert main(["check", "00:10.0"]) == 2
    piped = capsys.readouterr().out
    monkeypatch.setattr(check, "screen_columns", lambda: 60)
    assert main(["check", "00:10.0"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(piped.split())
    assert max(len(line) for line in lines if "mend: " not in line) <= 60
    assert [line for line in lines if "mend: " in line] == [line for line in piped.splitlines() if "mend: " in line]
    assert max(map(len, piped.splitlines())) > 60


def test_the_outlook_of_a_scan_is_broken_between_words_on_a_terminal(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scan, "run", functools.partial(scan.run, root=HostRoot(host)))
    main(["scan"])
    piped = capsys.readouterr().out
    monkeypatch.setattr(scan, "screen_columns", lambda: 60)
    main(["scan"])
    shown = capsys.readouterr().out
    assert shown.split() == piped.split()
    assert max(len(line) for line in shown.splitlines() if line.startswith("    ")) <= 60 < len(piped.splitlines()[2])


def test_other_verbs_say_it_on_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", "--nonsense"]) == 2
    assert capsys.readouterr().out == ""
