"""Standard output that cannot take what is written: told as what it is, neither a traceback nor a bug of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = [["--help"], ["--version"], ["bench", "--help"], ["explain", "INTX001"], ["lab", "list"], ["scan", "--json"]]
FULL = Path("/dev/full")


def run(words: list[str], stdout: int, *, unbuffered: bool) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if unbuffered:
        environment["PYTHONUNBUFFERED"] = "1"
    argv = [sys.executable, "-m", "vfio_intx", *words]
    return subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which every Linux host but a bare container has")
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_full_disk_is_told_with_its_errno(words: list[str], unbuffered: bool) -> None:
    with FULL.open("w") as full:
        ran = run(words, full.fileno(), unbuffered=unbuffered)
    assert ran.returncode == 1
    first, *rest = ran.stderr.splitlines()
    assert first.endswith("write on standard output failed: No space left on device (ENOSPC)")
    assert [line[:7] for line in rest] == ["  try: "], ran.stderr


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("words", WORDS[:4], ids=" ".join)
def test_a_reader_that_went_away_is_no_failure_to_tell_of(words: list[str], unbuffered: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = run(words, writer, unbuffered=unbuffered)
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")


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
