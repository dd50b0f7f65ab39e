"""What a test run says where a machine lacks something: a skip, a failure if required, and never silence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from vfio_intx.lab.run import INSIDE, PROJECT

Runs = tuple[Future[subprocess.CompletedProcess[str]], Future[subprocess.CompletedProcess[str]]]


def _pytest(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Another pytest on a machine without the lab's programs."""
    environment = {k: v for k, v in os.environ.items() if k not in ("VFIO_INTX_REQUIRE", INSIDE)}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        argv, cwd=PROJECT, env={**environment, "PATH": "/nonexistent", **variables}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """Two runs without a lab, one that can do without and one that requires it. They go on at once."""
    with ThreadPoolExecutor() as pool:
        yield (
            pool.submit(_pytest, "tests/lab/test_l1_host.py"),
            pool.submit(_pytest, "tests/lab/test_l1_host.py", VFIO_INTX_REQUIRE="kvm, lab"),
        )


def test_a_missing_lab_is_a_loud_skip(runs: Runs) -> None:
    done = runs[0].result()
    assert done.returncode == 0
    assert "7 skipped" in done.stdout
    assert "this machine lacks" in done.stdout
    assert "tools/setup installs" in done.stdout


def test_a_missing_lab_that_is_required_is_a_failure(runs: Runs) -> None:
    done = runs[1].result()
    assert done.returncode == 1
    assert "7 errors" in done.stdout
    assert "required by VFIO_INTX_REQUIRE, but missing: lab" in done.stdout


@pytest.mark.lab
@pytest.mark.timeout(300)
def test_a_lab_that_cannot_boot_is_lost_and_no_test_failed() -> None:
    # No kernel, and no place to put one.
    done = _pytest(
        "tests/lab/test_l1_host.py::test_kvm_and_vfio_are_usable",
        PATH=os.environ["PATH"],
        VFIO_INTX_CACHE="/proc/no-such-place",
    )
    assert done.returncode == 3, done.stdout
    assert "LAB LOST" in done.stdout
    assert "1 error" in done.stdout
    assert "failed" not in done.stdout.splitlines()[-1]
