"""What tracing adds to one interrupt on this host: the micro VM at its ceiling, with and without, in turns."""

from __future__ import annotations

import os
import statistics
import time

from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all
from vfio_intx.host.root import HostRoot
from vfio_intx.microvm.bench import Ceiling
from vfio_intx.names import Gsi
from vfio_intx.observe.collect import Tracer
from vfio_intx.observe.target import resolve

_TURNS, _TURN_S = 5, 0.3


def measure_added_us(root: HostRoot) -> float:
    """Microseconds that tracing adds from one interrupt to the next: the median of some turns, traced less untraced.

    At the ceiling both cores of a small machine are busy, so that it is the worst case: the tracer's own work is in it.

    :raise MissingError, BusyError, KernelError: no usable /dev/kvm, or no tracefs.
    """
    fd = kvm.open_kvm(root.at("dev/kvm"))
    try:
        ceiling = Ceiling(fd)
        try:
            pairs = [(_turn(ceiling, root, traced=False), _turn(ceiling, root, traced=True)) for _ in range(_TURNS)]
        finally:
            ceiling.close()
    finally:
        close_all(fd)
    return round(statistics.median(traced - alone for alone, traced in pairs), 2)


def _turn(ceiling: Ceiling, root: HostRoot, *, traced: bool) -> float:
    """Microseconds from one interrupt to the next."""
    if not traced:
        return _spell(ceiling, None)
    target, pid = resolve(root, pid=os.getpid(), gsi=Gsi(ceiling.figures.gsi), bdf=None)
    with Tracer(target, root=root, pid=pid) as tracer:
        return _spell(ceiling, tracer)


def _spell(ceiling: Ceiling, tracer: Tracer | None) -> float:
    ceiling.begin()
    began = time.perf_counter()
    try:
        while time.perf_counter() - began < _TURN_S:
            time.sleep(0.05)
            if tracer is not None:
                tracer.poll()
        seconds = time.perf_counter() - began
        count = ceiling.progress()
    finally:
        ceiling.end()
    return seconds / max(1, count) * 1e6
