"""Evidence for the scheme of a live line, and the rule for when it is proof.

A scheme is only called proven on two *independent kinds* of evidence: what QEMU says of its configuration and what
the counters of another witness show are two kinds; two properties of one QEMU are one.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from vfio_intx.chain.scheme import Scheme


class Kind(Enum):
    """The witness that an item of evidence comes from."""

    CONFIGURATION = "configuration"
    """Properties and machine options, as QEMU reports them."""
    COUNTERS = "counters"
    """Interrupt counts of the host (``/proc/interrupts``) against those of QEMU (``info irq``)."""
    TRACE = "trace"
    """Kernel tracepoints: the injection's source id, the acknowledge."""
    DESCRIPTORS = "descriptors"
    """The file descriptors of the process, from ``/proc/PID/fdinfo``."""


class Evidence(NamedTuple):
    """One observation. ``speaks_for`` is the scheme it supports, None where it decides nothing yet."""

    kind: Kind
    text: str
    speaks_for: Scheme | None


class Verdict(NamedTuple):
    """What can be said of a line's scheme. ``scheme`` is set only if ``proven``; ``why_not`` says what is missing."""

    scheme: Scheme | None
    proven: bool
    why_not: str | None
    evidence: tuple[Evidence, ...]


def weigh(evidence: Iterable[Evidence]) -> Verdict:
    """The verdict on some evidence: proven if at least two kinds speak for one scheme and none for another."""
    items = tuple(evidence)
    kinds: dict[Scheme, set[Kind]] = {}
    for item in items:
        if item.speaks_for is not None:
            kinds.setdefault(item.speaks_for, set()).add(item.kind)
    if not kinds:
        return Verdict(None, False, "nothing seen yet speaks for any scheme", items)
    if len(kinds) > 1:
        names = " and ".join(sorted(scheme.value for scheme in kinds))
        return Verdict(None, False, f"the evidence contradicts itself: it speaks for {names}", items)
    scheme, seen = next(iter(kinds.items()))
    if len(seen) < 2:
        only = next(iter(seen)).value
        return Verdict(
            None, False, f"only {only} speaks for {scheme.value}; a second kind of evidence is missing", items
        )
    return Verdict(scheme, True, None, items)
