"""What a test run makes of a lab that is lost: another try, and never the failure of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from tests.lab.batches import read_reports
from tests.lab.losses import in_words, unless_lost
from vfio_intx.errors import LabLost, WorldError


def attempts(*outcomes: BaseException | str) -> tuple[list[str], str | BaseException]:
    """How often a run with these outcomes, one a try, was tried, and what came of it."""
    tried: list[str] = []

    def run() -> str:
        outcome = outcomes[len(tried)]
        tried.append("")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    try:
        return tried, unless_lost(run)
    except (LabLost, WorldError) as error:
        return tried, error


def test_a_lost_lab_is_tried_once_more_and_a_failure_is_not() -> None:
    lost, failure = LabLost("died"), WorldError("does not hold")
    assert attempts("fine") == ([""], "fine")
    assert attempts(lost, "fine") == (["", ""], "fine")
    assert attempts(lost, lost, "fine") == (["", ""], lost)
    assert attempts(failure, "fine") == ([""], failure)
    assert attempts(lost, failure, "fine") == (["", ""], failure)


def test_a_test_that_lost_its_guest_has_no_verdict_yet(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    file = tmp_path / "reports.jsonl"
    with file.open("w") as lines:
        for name, text in (("lost", in_words(LabLost("the guest hangs"))), ("failed", "assert 1 == 2"), ("fine", None)):
            for when in ("setup", "call", "teardown"):
                bad = text is not None and when == "call"
                outcome: Literal["failed", "passed"] = "failed" if bad else "passed"
                report = pytest.TestReport(name, ("f", 1, name), {}, outcome, text if bad else None, when, duration=0.0)
                data = pytestconfig.hook.pytest_report_to_serializable(config=pytestconfig, report=report)
                lines.write(json.dumps(data) + "\n")
    found = read_reports(file, pytestconfig)
    assert set(found) == {"failed", "fine"}
    assert [report.outcome for report in found["failed"]] == ["passed", "failed", "passed"]
