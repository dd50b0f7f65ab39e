"""Command lines that are wrong: what was wrong with them, and a next step, whatever it was."""

from __future__ import annotations

import pytest

from vfio_intx.cli.main import main

BDF = "0000:05:00.0"


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bench", "--count", "0"], "--count must be a whole number"),
        (["bench", "--ceiling", "--seconds", "x"], "--seconds must be a whole number"),
        (["trace", BDF, "--count", "1x"], "--count must be a whole number"),
        (["detach", BDF, "--proxmox", "x"], "a VMID must be a whole number"),
        (["restore", "--state-dir", "relative"], "must be an absolute path"),
        (["status", "--interval", "0"], "'0' is not a number of seconds above 0, at most 3600"),
        (["nonsense"], "unknown verb 'nonsense'"),
        (["explain", "INTX999"], "unknown code 'INTX999'"),
    ],
)
def test_a_wrong_command_line_has_a_next_step(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.splitlines()[-1].startswith("  try: ")


@pytest.mark.parametrize("machine", ["foo", "pc-q35-", "virt", "", "q35 "])
def test_check_takes_no_word_that_is_no_machine_of_a_pc(machine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", BDF, "--machine", machine]) == 3
    assert "--machine" in capsys.readouterr().err


def test_the_overview_leads_to_the_manual_page(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "man vfio-intx" in capsys.readouterr().out
