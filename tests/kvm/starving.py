"""A vCPU that gets hardly any CPU time: what a busy machine does by chance now and then, done on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def starved_vcpus() -> Iterator[None]:
    """Every vCPU thread of this process shares one CPU with a busy process and runs when that does not want it.

    It then gets some 0.3 % of that CPU (the weight of SCHED_IDLE). As before when left.
    """
    vcpus = [thread.native_id for thread in threading.enumerate() if thread.name == "vcpu" and thread.native_id]
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    busy = subprocess.Popen(
        [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nprint(flush=True)\nwhile True: pass"],
        stdout=subprocess.PIPE,
    )
    assert busy.stdout is not None
    try:
        busy.stdout.readline()
        for vcpu in vcpus:
            os.sched_setaffinity(vcpu, {cpu})
            os.sched_setscheduler(vcpu, os.SCHED_IDLE, os.sched_param(0))
        yield
    finally:
        for vcpu in vcpus:
            os.sched_setscheduler(vcpu, os.SCHED_OTHER, os.sched_param(0))
            os.sched_setaffinity(vcpu, allowed)
        busy.kill()
        busy.wait()
        busy.stdout.close()
