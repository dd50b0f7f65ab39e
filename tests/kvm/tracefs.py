"""tracefs for a test, whoever mounted it: on a machine that has just started nobody may have."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from vfio_intx.errors import KernelError, MissingError
from vfio_intx.host.root import HostRoot
from vfio_intx.observe.tracefs import find_tracefs

_PLACE = "/sys/kernel/tracing"


@contextmanager
def tracefs_or_skip() -> Iterator[Path]:
    """As :func:`mounted_tracefs`; where it cannot be had the tests are skipped, or fail where KVM is required."""
    with ExitStack() as stack:
        try:
            place = stack.enter_context(mounted_tracefs(HostRoot()))
        except (KernelError, MissingError) as error:
            lack = pytest.fail if "kvm" in os.environ.get("VFIO_INTX_REQUIRE", "").split(",") else pytest.skip
            lack(f"tracing: {error}; {error.hint}")
        yield place


@contextmanager
def mounted_tracefs(root: HostRoot) -> Iterator[Path]:
    """Where tracefs is. One that this has mounted is unmounted afterwards, unless somebody uses it by then.

    :raise MissingError: this kernel has none. :raise KernelError: we may not look.
    """
    ours = False
    try:
        find_tracefs(root)
    except MissingError:
        if os.geteuid() == 0:
            ours = subprocess.run(["mount", "-t", "tracefs", "nodev", _PLACE], check=False).returncode == 0
    try:
        yield find_tracefs(root)
    finally:
        if ours:
            subprocess.run(["umount", _PLACE], check=False)
