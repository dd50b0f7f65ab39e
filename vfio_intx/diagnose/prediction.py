"""What would happen if a function were given to a guest by INTx: drawn from a snapshot alone, nothing is touched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vfio_intx.chain.finding import Finding, Severity
from vfio_intx.chain.scheme import Scheme
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.rules import findings
from vfio_intx.diagnose.rules.machine import predicted_scheme
from vfio_intx.diagnose.subject import Subject, VmFacts, subjects
from vfio_intx.host.iommu import is_vfio_driver
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.snapshot import Snapshot

#: Of the functions on one wire so many are named; on an old board it may be all of them.
_MOST_NAMED = 4


class Prediction(NamedTuple):
    """What all questions come to for one function.

    :ivar findings: of every rule, the worst first.
    :ivar outlook: what would happen on attach, in plain sentences, the worst first.
    :ivar ready: whether nothing stands against it.
    :ivar scheme: the scheme that stock QEMU would make live, and why; None where there is no INTx.
    """

    subject: Subject
    findings: tuple[Finding, ...]
    outlook: tuple[str, ...]
    ready: bool
    scheme: tuple[Scheme, str] | None

    @property
    def severity(self) -> Severity:
        """The worst of the findings; CRITICAL outweighs UNKNOWN."""
        return self.findings[0].severity if self.findings else Severity.OK


def predict_all(
    snapshot: Snapshot, functions: Iterable[PciFunction], vm: VmFacts | None = None
) -> tuple[Prediction, ...]:
    """The prediction for each of these functions of a snapshot."""
    return tuple(_predict(subject) for subject in subjects(snapshot, functions, vm))


def predict(function: PciFunction, snapshot: Snapshot, vm: VmFacts | None = None) -> Prediction:
    """The prediction for one function of a snapshot."""
    return predict_all(snapshot, [function], vm)[0]


def _predict(subject: Subject) -> Prediction:
    found = findings(subject)
    against = [finding for finding in found if finding.severity is Severity.CRITICAL]
    unknown = [finding for finding in found if finding.severity is Severity.UNKNOWN]
    rest = [finding for finding in found if finding.severity in (Severity.WARNING, Severity.OK)]
    head = [_sentence(finding.summary) for finding in (*against, *unknown)] or [_fair_weather(subject)]
    outlook = (*head, *(_sentence(finding.summary) for finding in rest))
    return Prediction(subject, found, outlook, not against and not unknown, predicted_scheme(subject))


def _sentence(summary: str) -> str:
    return f"{summary}." if summary.startswith("vfio-pci") else f"{summary[0].upper()}{summary[1:]}."


def _fair_weather(subject: Subject) -> str:
    where = "It is on vfio-pci already" if is_vfio_driver(subject.driver) else "It can be bound to vfio-pci"
    if subject.irq is None:
        return f"{where}; which line it has is not known yet, and it may be shared: it masks itself by DisINTx."
    line = f"IRQ {subject.irq}"
    if subject.verdict.masking is Masking.EXCLUSIVE:
        return f"{where}; {line} would be its alone ({subject.verdict.why}){_also_wired(subject)}."
    if subject.handlers:
        return f"{where}; {line} would be shared with {', '.join(subject.handlers)}, and it masks itself by DisINTx."
    return f"{where}; {line} would be its alone, and it masks itself by DisINTx{_also_wired(subject)}."


def _also_wired(subject: Subject) -> str:
    """Who could be on its line too, and why they are not: else the same IRQ beside it in a table would contradict."""
    others = [f"{other.bdf} ({_instead(other)})" for other in subject.neighbours]
    more = [f"and {len(others) - _MOST_NAMED} more"] if len(others) > _MOST_NAMED else []
    names = ", ".join((*others[:_MOST_NAMED], *more))
    return f"; also wired to it, but not using it: {names}" if others else ""


def _instead(other: PciFunction) -> str:
    return "MSI" if other.msi_vectors.value else other.driver.get("?") or "no driver"
