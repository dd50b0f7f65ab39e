"""Where what ``trace`` prints goes: results to standard output, whatever follows the run to the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvm.tracefs import tracefs_or_skip
from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all

pytestmark = pytest.mark.kvm

WORDS = [sys.executable, "-m", "vfio_intx", "trace", "--pid", str(os.getpid()), "--gsi", "20", "--seconds", "0.3"]


@pytest.fixture(autouse=True)
def _traceable() -> Iterator[None]:
    """This process has a VM, which is quiet."""
    with tracefs_or_skip():
        system = kvm.open_kvm(Path("/dev/kvm"))
        vm = kvm.create_vm(system)
        yield
        close_all(vm, system)


def test_with_a_terminal_to_follow_on_the_result_still_goes_to_standard_output() -> None:
    ours, theirs = os.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40"}
        done = subprocess.run([*WORDS, "--json"], stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=60)
    finally:
        os.close(theirs)
        os.close(ours)
    assert json.loads(done.stdout)["schema"] == "vfio-intx/trace/1"


def test_a_run_that_saw_nothing_says_so_beside_its_file(tmp_path: Path) -> None:
    done = subprocess.run([*WORDS, "--json-to", str(tmp_path / "j")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "No interrupt of this line was seen" in done.stdout
    assert json.loads((tmp_path / "j").read_bytes())["interrupts"] == 0
