"""What most tests of drivers begin with; a file that needs another host has a fixture of its own by that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.kernel import FakeKernel, nic_host


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where the records go; not made yet."""
    return tmp_path / "state"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A host with one NIC on its first driver."""
    return nic_host(tmp_path / "host")
