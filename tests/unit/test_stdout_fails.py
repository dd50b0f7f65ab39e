"""Standard output that cannot take what is written: told as what it is, neither a traceback nor a bug of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

WORDS = [["--help"], ["--version"], ["bench", "--help"], ["explain", "INTX001"], ["lab", "list"], ["scan", "--json"]]
WITHOUT = [*WORDS, ["check", "--json", "0000:ff:1f.7"]]
FULL = Path("/dev/full")


def run(words: list[str], stdout: int, *, unbuffered: bool) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if unbuffered:
        environment["PYTHONUNBUFFERED"] = "1"
    argv = [sys.executable, "-m", "vfio_intx", *words]
    return subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)


def into_full(words: list[str], unbuffered: bool) -> subprocess.CompletedProcess[str]:
    with FULL.open("w") as full:
        return run(words, full.fileno(), unbuffered=unbuffered)


def into_nobody(words: list[str], unbuffered: bool) -> subprocess.CompletedProcess[str]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return run(words, writer, unbuffered=unbuffered)
    finally:
        os.close(writer)


def into_none(words: list[str], _: bool) -> subprocess.CompletedProcess[str]:
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "vfio_intx", *words]
    return subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=60)


def into_null(words: list[str], unbuffered: bool) -> subprocess.CompletedProcess[str]:
    return run(words, subprocess.DEVNULL, unbuffered=unbuffered)


Into = Callable[[list[str], bool], subprocess.CompletedProcess[str]]
Runs = Callable[[Into, list[str], bool], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """How a command line ended. An interpreter starts for each; as many as there are CPUs run at once."""
    wanted: list[tuple[Into, list[str]]] = [(into_nobody, words) for words in WORDS[:4]]
    if FULL.exists():
        wanted = [*((into_full, words) for words in WORDS), *wanted]
    wanted += [(into_none, words) for words in WITHOUT]
    wanted += [(into_null, words) for words in WITHOUT]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pending: dict[tuple[Into, tuple[str, ...], bool], Future[subprocess.CompletedProcess[str]]] = {
            (into, tuple(words), unbuffered): pool.submit(into, words, unbuffered)
            for into, words in wanted
            for unbuffered in ((False,) if into in (into_none, into_null) else (False, True))
        }
        yield lambda into, words, unbuffered: pending[into, tuple(words), unbuffered].result()


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which every Linux host but a bare container has")
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_full_disk_is_told_with_its_errno(runs: Runs, words: list[str], unbuffered: bool) -> None:
    ran = runs(into_full, words, unbuffered)
    assert ran.returncode == 1
    first, *rest = ran.stderr.splitlines()
    assert first.endswith("write on standard output failed: No space left on device (ENOSPC)")
    assert [line[:7] for line in rest] == ["  try: "], ran.stderr


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("words", WORDS[:4], ids=" ".join)
def test_a_reader_that_went_away_is_no_failure_to_tell_of(runs: Runs, words: list[str], unbuffered: bool) -> None:
    ran = runs(into_nobody, words, unbuffered)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.parametrize("words", WITHOUT, ids=" ".join)
def test_started_without_a_standard_output_it_does_its_work_all_the_same(runs: Runs, words: list[str]) -> None:
    ran, with_one = (runs(into, words, False) for into in (into_none, into_null))
    assert (ran.returncode, ran.stderr) == (with_one.returncode, with_one.stderr)
    assert "internal error" not in ran.stderr


def test_what_it_opens_does_not_become_its_standard_output(tmp_path: Path) -> None:
    """A file opened first would get the free number 1, and what is printed next would go into it."""
    report = tmp_path / "report.tar.gz"
    shell = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", sys.executable, "-m", "vfio_intx", "report"]
    assert subprocess.run([*shell, "--output", str(report)], timeout=60).returncode == 0
    with tarfile.open(report) as archive:
        assert archive.getnames()


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which every Linux host but a bare container has")
def test_with_nowhere_to_say_it_the_status_still_tells() -> None:
    with FULL.open("w") as full:
        argv = [sys.executable, "-m", "vfio_intx", "--version"]
        assert subprocess.run(argv, stdout=full, stderr=full, timeout=60).returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_the_terminal_has_not_is_written_as_an_escape(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    argv = [sys.executable, "-m", "vfio_intx", "explain", "INTX005"]
    ran = subprocess.run(argv, capture_output=True, encoding=encoding, env=environment, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "nobody cared \\u2026 Disabling" in ran.stdout


def test_json_is_utf_8_whatever_the_terminal_has(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    argv = [sys.executable, "-m", "vfio_intx", "explain", "INTX005", "--json"]
    ran = subprocess.run(argv, capture_output=True, encoding="utf-8", env=environment, timeout=60)
    assert ran.returncode == 0
    assert "…" in json.loads(ran.stdout)["rules"][0]["text"]
