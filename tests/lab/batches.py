"""Tests that run inside L1: gathered here, run by pytest in one boot a lab, reported here under their own names.

In L1 each report is written to a file as it is made, so that a lab that dies in the middle loses only what had not run.
A lost lab is an error of its own kind ("LAB LOST"), never the failure of a test.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab.losses import in_words, is_loss, unless_lost
from tests.lab.specs import SPECS
from vfio_intx.deadline import Deadline
from vfio_intx.errors import LabLost, VfioIntxError
from vfio_intx.lab.play import results_folder
from vfio_intx.lab.run import INSIDE, run_in_lab

#: Set in L1: the file that reports are written to.
REPORTS = "VFIO_INTX_TEST_REPORTS"

#: Deadlines for a machine that others keep busy, too: of the boot, of a test as a share of all, of one test by itself.
BOOT_S = 600.0
TEST_S = 180.0
ONE_S = 300.0


@dataclass(frozen=True, slots=True)
class Key:
    """Tests of one key share a lab."""

    spec: str
    kernel: str


@dataclass(slots=True)
class Batch:
    """The tests of one lab. ``reports`` are what L1 sent, by test; ``lost`` says why some have none."""

    key: Key
    items: list[pytest.Item] = field(default_factory=list)
    reports: dict[str, list[pytest.TestReport]] = field(default_factory=dict)
    lost: str | None = None
    ran: bool = False


def inside_l1() -> bool:
    """Whether this very process runs in L1."""
    return bool(os.environ.get(INSIDE))


def key_of(item: pytest.Item) -> Key:
    """The lab that *item* asks for: ``@pytest.mark.l1(spec="default", kernel="6.12")``."""
    marker = item.get_closest_marker("l1")
    asked = {} if marker is None else dict(marker.kwargs)
    name = str(asked.pop("spec", "default"))
    if name not in SPECS:
        raise pytest.UsageError(f"{item.nodeid}: there is no lab spec {name!r}, only {', '.join(SPECS)}")
    kernel = str(asked.pop("kernel", SPECS[name].kernel))
    if asked or (marker is not None and marker.args):
        raise pytest.UsageError(f"{item.nodeid}: the marker l1 takes spec= and kernel=")
    return Key(name, kernel)


def gather(items: Sequence[pytest.Item]) -> dict[str, Batch]:
    """Test id -> the batch it belongs to."""
    batches: dict[Key, Batch] = {}
    table = {}
    for item in items:
        batch = batches.setdefault(key_of(item), Batch(key_of(item)))
        batch.items.append(item)
        table[item.nodeid] = batch
    return table


def run(batch: Batch, config: pytest.Config, say: Callable[[str], None]) -> None:
    """Boot the batch's lab and run its tests in it; fills ``reports`` and, where some are missing, ``lost``.

    Where the lab is lost, what has no verdict by then runs in a second one, and that is all.
    """
    batch.ran = True
    try:
        unless_lost(lambda: _one_lab(batch, config, say))
    except LabLost as error:
        batch.lost = in_words(error)
    except VfioIntxError as error:
        batch.lost = f"LAB LOST: it could not be booted: {error}" + (f"\n  try: {error.hint}" if error.hint else "")


def _one_lab(batch: Batch, config: pytest.Config, say: Callable[[str], None]) -> None:
    """Boot once for the tests without reports. :raise LabLost: if some have none afterwards."""
    items = [item for item in batch.items if item.nodeid not in batch.reports]
    results_dir = results_folder()
    names = results_dir / "tests"
    names.write_text("".join(f"{item.nodeid}\n" for item in items), "utf-8")
    spec = dataclasses.replace(SPECS[batch.key.spec], kernel=batch.key.kernel)
    reports = results_dir / "reports.jsonl"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--timeout={ONE_S:g}",
        f"--rootdir={config.rootpath}",
        f"@{names}",
    ]
    deadline = Deadline.after(f"lab tests, spec {batch.key.spec}", BOOT_S + TEST_S * len(items))
    say(f"booting the lab for {len(items)} tests (spec {batch.key.spec}, kernel {batch.key.kernel})")
    begun = time.monotonic()

    def progress(line: str) -> None:
        say(f"[{time.monotonic() - begun:6.1f} s] {line}")

    try:
        run_in_lab(spec, command, results_dir, deadline, progress, {REPORTS: str(reports)})
    finally:
        found = read_reports(reports, config)
        batch.reports.update(found)
        whole = len(found) == len(items) and not any(report.failed for each in found.values() for report in each)
        if whole:
            shutil.rmtree(results_dir)
        else:
            say(f"kept for inspection: {results_dir}")
    if len(found) < len(items):
        raise LabLost(
            f"pytest in L1 said nothing of {len(items) - len(found)} tests; its output is {results_dir}/output"
        )


def read_reports(path: Path, config: pytest.Config) -> dict[str, list[pytest.TestReport]]:
    """Test id -> its reports (setup, call, teardown), for tests that came to their end; a torn last line is dropped.

    A test that lost its guest in L1 has none: it may run once more.
    """
    found: dict[str, list[pytest.TestReport]] = {}
    for data in _lines(path):
        report = config.hook.pytest_report_from_serializable(config=config, data=data)
        if isinstance(report, pytest.TestReport):
            found.setdefault(report.nodeid, []).append(report)
    ended = {name: reports for name, reports in found.items() if reports[-1].when == "teardown"}
    return {name: reports for name, reports in ended.items() if not any(is_loss(report) for report in reports)}


def _lines(path: Path) -> Iterator[dict[str, object]]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if isinstance(data, dict):
            yield data


def write_report(report: pytest.TestReport, config: pytest.Config) -> None:
    """In L1: append one report to the file that the machine reads."""
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    with Path(os.environ[REPORTS]).open("ab") as file:
        file.write(json.dumps(data).encode() + b"\n")


def lost_report(item: pytest.Item, why: str) -> pytest.TestReport:
    """The report of a test that a lost lab took with it: an error before the test, not a failure of it."""
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "setup", duration=0.0)
