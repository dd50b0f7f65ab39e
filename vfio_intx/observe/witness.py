"""Tracepoints as a witness for the scheme of a line: which source injected, and who acknowledged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vfio_intx.chain.evidence import Evidence, Kind
from vfio_intx.errors import WorldError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.observe.collect import Tracer
from vfio_intx.observe.target import resolve
from vfio_intx.wiring.verify import Witness


def tracing(root: HostRoot) -> Witness:
    """A witness that traces a line while its block runs. Where it cannot, that is an item which decides nothing."""

    @contextmanager
    def witness(bdf: Bdf, pid: int | None) -> Iterator[Sequence[Evidence]]:
        found: list[Evidence] = []
        try:
            target, holder = resolve(root, pid=pid, gsi=None, bdf=bdf)
            tracer = Tracer(target, root=root, pid=holder).__enter__()
        except WorldError as error:
            yield [Evidence(Kind.TRACE, f"not traced: {error}", None)]
            return
        try:
            yield found
            try:
                seen = tracer.finish().summary.evidence()
                found.append(seen or Evidence(Kind.TRACE, "the trace shows no whole interrupt", None))
            except WorldError as error:
                found.append(Evidence(Kind.TRACE, f"the trace failed: {error}", None))
        finally:
            tracer.__exit__(None, None, None)

    return witness
