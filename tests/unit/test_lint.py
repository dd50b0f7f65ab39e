"""The linters, as tests: what they say is in the failure, and the command to run by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_linter_has_nothing_to_say(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_scripts_are_posix_shell() -> None:
    for script in sorted(
        [*(TREE / "tools").iterdir(), *(TREE / ".ci").iterdir(), *TREE.joinpath("vfio_intx").rglob("*.sh")]
    ):
        if script.is_file() and script.read_bytes().startswith((b"#!/bin/sh", b"#!/bin/busybox sh")):
            done = subprocess.run(["/bin/sh", "-n", str(script)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
