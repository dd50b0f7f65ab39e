"""tracefs for a test, whoever mounted it: on a machine that has just started nobody may have."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vfio_intx.errors import MissingError
from vfio_intx.host.root import HostRoot
from vfio_intx.observe.tracefs import find_tracefs

_PLACE = "/sys/kernel/tracing"


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
