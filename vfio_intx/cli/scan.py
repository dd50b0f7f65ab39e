"""``vfio-intx scan``: every function with an INTx pin, and what would happen if it were given to a guest."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vfio_intx.chain.fact import Fact
from vfio_intx.chain.finding import Finding
from vfio_intx.cli.text import columns, screen_columns, wrapped
from vfio_intx.diagnose.prediction import Prediction, predict_all
from vfio_intx.diagnose.rules.device import has_msi
from vfio_intx.host.pci import NO_GROUP
from vfio_intx.host.root import HostRoot
from vfio_intx.host.snapshot import Snapshot, take_snapshot
from vfio_intx.names import Bdf, escape

#: Of files that could not be read so many are named; a host may have hundreds of VMs.
_MOST_UNREAD = 4

EPILOG = """\
needs no root; what only root may read is shown as "?"

examples:
  vfio-intx scan
  vfio-intx scan 05:00.0 --json
  vfio-intx scan --from vfio-intx-report.tar.gz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("bdf", metavar="BDF", nargs="*", help="only these functions, with or without a pin")
    parser.add_argument("--json", action="store_true", help="print vfio-intx/scan/1 instead of a table")
    parser.add_argument(
        "--from",
        dest="snapshot",
        metavar="FILE",
        help="the archive of report, or its snapshot.json, in place of this host",
    )


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Scan and print; 0 also where no function has a pin."""
    wanted = [Bdf.parse(text) for text in arguments.bdf]
    with _without_collector():
        return _scan(arguments, wanted, root)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python from looking for cycles: there are none, and it would walk a big host's facts again and again."""
    import gc

    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _scan(arguments: argparse.Namespace, wanted: Sequence[Bdf], root: HostRoot | None) -> int:
    snapshot = host_snapshot(arguments.snapshot, root)
    chosen = [snapshot.function(bdf) for bdf in wanted] or [
        function for function in snapshot.functions.values() if function.may_have_pin
    ]
    predictions = predict_all(snapshot, chosen)
    if arguments.json:
        from vfio_intx.cli.output import print_json

        print_json("scan/1", payload(snapshot, predictions))
    else:
        print(table(snapshot, predictions))
    return 0


def host_snapshot(file: str | None, root: HostRoot | None) -> Snapshot:
    """The snapshot in *file*, or else of the host at *root* (this one by default)."""
    if file is None:
        return take_snapshot(root or HostRoot())
    from vfio_intx.host.replay import read_snapshot

    return read_snapshot(file)


def payload(snapshot: Snapshot, predictions: Iterable[Prediction]) -> dict[str, object]:
    """What ``--json`` prints, without the schema: a null stands for "unknown", its reason under ``unknown``."""
    return {
        "kernel": snapshot.kernel.release.value,
        "iommu": snapshot.iommu.present,
        "vfio_pci_loaded": snapshot.kernel.vfio_pci_loaded,
        "functions": [_function_payload(snapshot, prediction) for prediction in predictions],
    }


def _function_payload(snapshot: Snapshot, prediction: Prediction) -> dict[str, object]:
    subject = prediction.subject
    function = subject.function
    group, line, msi = snapshot.group_of(function), snapshot.line_of(function), has_msi(function)
    ids = function.ids.value
    return {
        "bdf": str(function.bdf),
        "vendor": f"{ids.vendor:04x}" if ids else None,
        "device": f"{ids.device:04x}" if ids else None,
        "subsystem": f"{ids.subsystem_vendor:04x}:{ids.subsystem_device:04x}" if ids else None,
        "class": f"{ids.class_code:06x}" if ids else None,
        "pin": function.pin.name if function.pin else None,
        "irq": subject.irq,
        "irq_source": subject.irq_source,
        "interrupts": line.count if line else None,
        "irq_users": list(subject.handlers),
        "irq_neighbours": [str(neighbour.bdf) for neighbour in subject.neighbours],
        "driver": function.driver.value or None,
        "driver_override": function.override.value or None,
        "iommu_group": group.number if group else None,
        "group_members": [str(member) for member in group.members] if group else [],
        "msi": msi[0] if msi else None,
        "msix": msi[1] if msi else None,
        "power_state": function.power.value,
        "masking": {"verdict": subject.verdict.masking.value, "why": subject.verdict.why},
        "ready": prediction.ready,
        "outlook": list(prediction.outlook),
        "scheme": prediction.scheme[0].value if prediction.scheme else None,
        "findings": [finding_payload(finding) for finding in prediction.findings],
        "claims": [f"{claim.owner}: {claim.text} ({claim.source})" for claim in snapshot.claims.get(function.bdf, ())],
        "unknown": unknown_facts(prediction),
    }


def finding_payload(finding: Finding) -> dict[str, object]:
    """A finding for JSON, the same in ``scan`` and ``check``."""
    return {
        "code": finding.code,
        "stage": finding.stage.value,
        "severity": finding.severity.name.lower(),
        "summary": finding.summary,
        "evidence": list(finding.evidence),
        "consequence": finding.consequence,
        "remedy": finding.remedy,
        "source": finding.source,
    }


def unknown_facts(prediction: Prediction) -> Mapping[str, str]:
    """For each fact of the function that could not be read: its source and why."""
    function = prediction.subject.function
    facts: dict[str, Fact[Any]] = {
        "ids": function.ids,
        "driver": function.driver,
        "driver_override": function.override,
        **({} if prediction.subject.irq else {"irq": function.intx_irq}),
        "config": function.config,
        "iommu_group": function.group,
        "power_state": function.power,
    }
    unknown = {name: f"{fact.source}: {fact.error}" for name, fact in facts.items() if not fact.is_known}
    config = function.config.value
    if config is not None and not config.has_capabilities:
        why = "only root may read the capabilities" if config.raw_pin else "not looked for where there is no pin"
        unknown["msi"] = f"{function.config.source}: {why}"
    unread = prediction.subject.snapshot.unread
    if unread:
        shown = [f"{escape(source)}: {error}" for source, error in unread[:_MOST_UNREAD]]
        more = [f"and {len(unread) - len(shown)} more"] if len(unread) > len(shown) else []
        unknown["claims"] = ", ".join((*shown, *more))
    return unknown


def table(snapshot: Snapshot, predictions: Iterable[Prediction]) -> str:
    """The scan for people: a row a function, and under it what would happen. Not a stable interface; --json is."""
    rows: list[tuple[str, ...]] = [("FUNCTION", "IDS", "PIN", "IRQ", "COUNT", "DRIVER", "GROUP", "MSI", "MASKING")]
    notes: list[tuple[str, ...]] = []
    for prediction in predictions:
        rows.append(_row(snapshot, prediction))
        notes.append(prediction.outlook)
    if not notes:
        return "No function of this machine has an INTx pin."
    head, *lines = columns(rows)
    width = screen_columns()
    told = ("\n".join(wrapped(f"    {text}", width, hang=4) for text in note) for note in notes)
    body = (f"{line}\n{note}" for line, note in zip(lines, told, strict=True))
    return "\n".join((head, *body))


def _row(snapshot: Snapshot, prediction: Prediction) -> tuple[str, ...]:
    function = prediction.subject.function
    line, msi = snapshot.line_of(function), has_msi(function)
    group = function.group.value
    kinds = "?" if msi is None else "+".join(name for name, there in zip(("MSI", "MSI-X"), msi, strict=True) if there)
    return (
        str(function.bdf),
        str(function.ids.value or "?"),
        function.pin.name if function.pin else "?" if function.may_have_pin else "-",
        str(prediction.subject.irq or ("-" if function.intx_irq.is_known else "?")),
        str(line.count) if line else "-",
        function.driver.value or "-" if function.driver.is_known else "?",
        "?" if group is None else "-" if group == NO_GROUP else str(group),
        kinds or "-",
        prediction.subject.verdict.masking.value,
    )
