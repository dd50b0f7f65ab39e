"""A descriptor of the real /dev/kvm, and the promise that a test leaves none behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all


@pytest.fixture
def kvm_fd() -> Iterator[int]:
    """``/dev/kvm``; at the end of the test as many descriptors are open as there were before it."""
    fds = Path("/proc/self/fd")
    before = sum(1 for _ in fds.iterdir())
    fd = kvm.open_kvm("/dev/kvm")
    yield fd
    close_all(fd)
    assert sum(1 for _ in fds.iterdir()) == before, "descriptors were left open"
