"""Tracers of many lines at once, for a table that also shows how long the guest takes to acknowledge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vfio_intx.errors import WorldError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.observe.collect import Tracer
from vfio_intx.observe.target import resolve

#: A line of the table is seldom busy: a small buffer each, so that sixty of them stay affordable.
_SIZE_KB = 256


class Traced:
    """Keeps a tracer for every line that it is told of; a context manager that removes them all.

    A line that cannot be traced is left out, with the reason in :attr:`why_not`.
    """

    def __init__(self, root: HostRoot) -> None:
        self._root = root
        self._tracers: dict[Bdf, Tracer] = {}
        self.why_not: dict[Bdf, str] = {}

    def __enter__(self) -> Traced:
        return self

    def __exit__(self, *_: object) -> None:
        while self._tracers:
            self._tracers.popitem()[1].__exit__(None, None, None)

    def follow(self, lines: Iterable[Bdf]) -> None:
        """Trace exactly these lines from now on; one whose VM or host IRQ is another by now, anew."""
        wanted = set(lines)
        over = {bdf for bdf, tracer in self._tracers.items() if tracer.gone()}
        for bdf in self._tracers.keys() - wanted | over:
            self._tracers.pop(bdf).__exit__(None, None, None)
        for bdf in wanted - self._tracers.keys() - self.why_not.keys():
            try:
                target, pid = resolve(self._root, pid=None, gsi=None, bdf=bdf)
                self._tracers[bdf] = Tracer(target, root=self._root, pid=pid, size_kb=_SIZE_KB).__enter__()
            except WorldError as error:
                self.why_not[bdf] = str(error)

    def latencies(self) -> Mapping[Bdf, tuple[float, float]]:
        """p50 and p99 from handler to acknowledge in microseconds since each was followed, of those with interrupts."""
        found = {}
        for bdf, tracer in self._tracers.items():
            tracer.poll()
            times = tracer.summary.to_ack.microseconds()
            if times:
                found[bdf] = (times["p50"], times["p99"])
        return found
