"""``vfio-intx check BDF``: would it work? Exit status as monitoring plugins have it: 0, 1, 2, 3."""

from __future__ import annotations

import argparse
from pathlib import Path

from vfio_intx.chain.finding import Finding, Severity
from vfio_intx.cli.scan import finding_payload, host_snapshot, unknown_facts
from vfio_intx.cli.text import screen_columns, wrapped
from vfio_intx.diagnose.prediction import Prediction, predict
from vfio_intx.diagnose.rules.machine import irqchip_of
from vfio_intx.diagnose.subject import VmFacts
from vfio_intx.errors import MissingError, UsageError, VfioIntxError
from vfio_intx.host.hwdb import hardware_name
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, escape

_MOST_MESSAGES = 2000
_MEND = "      mend: "

#: A plugin's usage error is UNKNOWN, and so is everything else that keeps it from an answer.
USAGE_STATUS = int(Severity.UNKNOWN)

EPILOG = """\
exit status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (also where the command line is wrong)
needs no root, but as a mere user it knows less and says what; --write-test needs root

examples:
  vfio-intx check 05:00.0
  vfio-intx check 05:00.0 --irqchip split --guest-uses intx
  vfio-intx check 05:00.0 --qemu-log /var/log/libvirt/qemu/vm.log
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("bdf", metavar="BDF", help="the PCI function, such as 0000:05:00.0")
    parser.add_argument("--json", action="store_true", help="print vfio-intx/check/1 instead of text")
    parser.add_argument(
        "--from",
        dest="snapshot",
        metavar="FILE",
        help="the archive of report, or its snapshot.json, in place of this host",
    )
    parser.add_argument("--irqchip", choices=("on", "split", "off"), default="", help="the VM's kernel-irqchip")
    parser.add_argument("--machine", metavar="TYPE", help="the VM's machine type, for its default irqchip")
    parser.add_argument("--no-kvm-intx", action="store_true", help="the VM's vfio-pci has x-no-kvm-intx=on")
    parser.add_argument(
        "--guest-uses", choices=("intx", "msi", "msix"), default="", help="what the guest's driver chose"
    )
    parser.add_argument("--guest-trigger", choices=("level", "edge"), default="", help="how the guest set its pin")
    parser.add_argument("--write-test", action="store_true", help="flip the card's DisINTx bit; only without a driver")
    parser.add_argument("--qemu-log", type=Path, metavar="FILE", help="QEMU's own messages, to be looked through")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Check and print; the status is the worst finding's. What keeps it from an answer is UNKNOWN too."""
    try:
        bdf = Bdf.parse(arguments.bdf)
        irqchip = "" if arguments.machine is None else irqchip_of(arguments.machine)
        changes = _write_test(arguments, bdf, root)
        snapshot = host_snapshot(arguments.snapshot, root)
        function = snapshot.function(bdf)
        prediction = predict(function, snapshot, _vm(arguments, irqchip, changes))
        ids = function.ids.value
        name = hardware_name(root or HostRoot(), bdf, ids).value if ids and arguments.snapshot is None else None
    except VfioIntxError as error:
        error.exit_status = USAGE_STATUS
        if not arguments.json:
            print(unknown_line(f"{arguments.bdf}: {error}"))
        raise
    if arguments.json:
        from vfio_intx.cli.output import print_json

        print_json("check/1", {"name": name} | _payload(prediction))
    else:
        print(_text(prediction, name))
    return int(prediction.severity)


def unknown_line(why: str) -> str:
    """The line on stdout where there is no answer: a monitoring system shows nothing of what stderr says."""
    return f"{Severity.UNKNOWN.name}: {_without_bar(escape(why))}"


def _without_bar(text: str) -> str:
    return text.replace("|", "/")  # a monitoring system takes the first bar for the beginning of the figures


def _write_test(arguments: argparse.Namespace, bdf: Bdf, root: HostRoot | None) -> bool | None:
    if not arguments.write_test:
        return None
    if arguments.snapshot is not None:
        raise UsageError("--write-test needs the card itself, not a snapshot")
    from vfio_intx.wiring.masktest import disintx_changes

    return disintx_changes(root or HostRoot(), bdf)


def _vm(arguments: argparse.Namespace, irqchip: str, changes: bool | None) -> VmFacts:
    messages: tuple[str, ...] = ()
    if arguments.qemu_log is not None:
        try:
            lines = arguments.qemu_log.read_text("utf-8", "replace").splitlines()
        except OSError as error:
            raise MissingError(f"{arguments.qemu_log} cannot be read: {error.strerror}") from error
        messages = tuple(escape(line[:500]) for line in lines[-_MOST_MESSAGES:])
    return VmFacts(
        arguments.irqchip or irqchip,
        arguments.no_kvm_intx or None,
        messages,
        arguments.guest_trigger,
        arguments.guest_uses,
        changes,
    )


def _payload(prediction: Prediction) -> dict[str, object]:
    subject, scheme = prediction.subject, prediction.scheme
    return {
        "bdf": subject.name,
        "status": prediction.severity.name.lower(),
        "ready": prediction.ready,
        "irq": subject.irq,
        "masking": {"verdict": subject.verdict.masking.value, "why": subject.verdict.why},
        "scheme": {"name": scheme[0].value, "why": scheme[1]} if scheme else None,
        "outlook": list(prediction.outlook),
        "findings": [finding_payload(finding) for finding in prediction.findings],
        "unknown": unknown_facts(prediction),
    }


def _text(prediction: Prediction, name: str | None) -> str:
    subject = prediction.subject
    count = subject.line.count if subject.line else 0
    data = f"interrupts={count}c sharers={len(subject.handlers)} findings={len(prediction.findings)}"
    lines = [f"{prediction.severity.name}: {subject.name}: {_without_bar(prediction.outlook[0])} | {data}"]
    lines += [f"  card: {name}"] if name else []
    if prediction.scheme is not None:
        lines.append(f"  scheme: {prediction.scheme[0].value}, if QEMU is stock: {prediction.scheme[1]}")
    lines += [line for finding in prediction.findings for line in _finding_lines(finding)]
    unread = unknown_facts(prediction).get("claims")
    lines += [f"  not seen: who else claims it: {unread}"] if unread else []
    columns = screen_columns()
    # What mends it may be a command to be copied, which is not broken.
    return "\n".join(line if line.startswith(_MEND) else wrapped(line, columns, hang=_hang(line)) for line in lines)


def _finding_lines(finding: Finding) -> list[str]:
    return [
        f"  {finding.code} {finding.severity.name.lower()}, {finding.stage.value}: {finding.summary}",
        *(f"      seen: {item}" for item in finding.evidence),
        f"      then: {finding.consequence}",
        *([f"{_MEND}{finding.remedy}"] if finding.remedy else []),
    ]


def _hang(line: str) -> int:
    indent = len(line) - len(line.lstrip())
    return indent + (6 if indent == 6 else 2)
