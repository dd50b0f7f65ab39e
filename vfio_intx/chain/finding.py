"""A finding: what is wrong or worth knowing about a chain, on what evidence, and what to do."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from vfio_intx.chain.stage import Stage


class Severity(IntEnum):
    """How bad. The numbers are those of a monitoring plugin's exit status."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class Finding(NamedTuple):
    """One conclusion.

    :ivar code: ``INTX001`` and so on; the long text is ``vfio-intx explain CODE``.
    :ivar stage: the link of the chain it is about.
    :ivar evidence: what was seen, each item with the file it was seen in.
    :ivar remedy: the exact command that mends it, or None where there is none.
    :ivar source: the kernel or QEMU file, commit or report that the rule rests on.
    """

    code: str
    stage: Stage
    severity: Severity
    summary: str
    evidence: tuple[str, ...]
    consequence: str
    remedy: str | None
    source: str
