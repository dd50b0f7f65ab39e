"""The rules, one topic a file: pure functions of a :class:`~vfio_intx.diagnose.subject.Subject`.

A rule's docstring is what ``vfio-intx explain CODE`` prints. :data:`RULES` has them all, by code.
"""

from __future__ import annotations

from collections.abc import Iterable

from vfio_intx.chain.finding import Finding, Severity
from vfio_intx.diagnose.rules.device import RULES as _DEVICE
from vfio_intx.diagnose.rules.history import RULES as _HISTORY
from vfio_intx.diagnose.rules.host import RULES as _HOST
from vfio_intx.diagnose.rules.line import RULES as _LINE
from vfio_intx.diagnose.rules.machine import RULES as _MACHINE
from vfio_intx.diagnose.rules.rule import Rule
from vfio_intx.diagnose.subject import Subject

RULES: dict[str, Rule] = {
    rule.code: rule for rule in sorted((*_LINE, *_HISTORY, *_DEVICE, *_HOST, *_MACHINE), key=lambda rule: rule.code)
}

#: The least to the worst: CRITICAL outweighs UNKNOWN, whose number as a plugin's status is higher.
_BY_WEIGHT = (Severity.OK, Severity.WARNING, Severity.UNKNOWN, Severity.CRITICAL)


def findings(subject: Subject) -> tuple[Finding, ...]:
    """What all rules have to say of a function, the worst first, then by code."""
    found = [finding for rule in RULES.values() for finding in rule.findings(subject)]
    return tuple(sorted(found, key=lambda finding: (-_BY_WEIGHT.index(finding.severity), finding.code)))


def codes(found: Iterable[Finding]) -> tuple[str, ...]:
    """The codes of some findings, each once, in order."""
    return tuple(sorted({finding.code for finding in found}))
