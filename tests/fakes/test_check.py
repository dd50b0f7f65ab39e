"""``check`` as a monitoring system runs it: what it reads is the first line of stdout and the exit status."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.fakes.kernel import nic_host
from vfio_intx.cli import check
from vfio_intx.cli.main import main


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
def test_a_reader_of_json_gets_no_line_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "00:1f.7", "--json"]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "there is no PCI function" in printed.err


def test_other_verbs_say_it_on_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", "--nonsense"]) == 2
    assert capsys.readouterr().out == ""
