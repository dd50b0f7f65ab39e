"""What a rule is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from vfio_intx.chain.finding import Finding, Severity
from vfio_intx.chain.stage import Stage
from vfio_intx.diagnose.subject import Subject


class Seen(NamedTuple):
    """What a rule saw in one subject; together with the rule it makes a finding.

    :ivar remedy: the exact command (or commands, joined by ``&&``), None where there is none.
    """

    severity: Severity
    summary: str
    evidence: tuple[str, ...]
    consequence: str
    remedy: str | None = None


Look = Callable[[Subject], Iterator[Seen]]


class Rule(NamedTuple):
    """One rule.

    :ivar source: the kernel or QEMU code, commit or report that it rests on.
    """

    code: str
    stage: Stage
    title: str
    source: str
    look: Look

    @property
    def text(self) -> str:
        """The long explanation: the docstring of *look*."""
        from inspect import cleandoc

        return cleandoc(self.look.__doc__ or self.title)

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What it finds in a subject."""
        for seen in self.look(subject):
            yield Finding(
                self.code,
                self.stage,
                seen.severity,
                seen.summary,
                seen.evidence,
                seen.consequence,
                seen.remedy,
                self.source,
            )


def rule(code: str, stage: Stage, title: str, source: str) -> Callable[[Look], Rule]:
    """Make a rule of a function; its docstring becomes the explanation."""
    return lambda look: Rule(code, stage, title, source, look)
