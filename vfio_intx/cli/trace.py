"""``vfio-intx trace``: time every stage of every interrupt of one line."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_intx.cli.output import console, print_json
from vfio_intx.errors import UsageError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, Gsi, parse_natural

if TYPE_CHECKING:
    from vfio_intx.observe.collect import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``trace``."""
    parser.add_argument("bdf", nargs="?", metavar="BDF", help="the passed-through device")
    parser.add_argument("--pid", help="the VM's process")
    parser.add_argument("--gsi", help="the line, as the guest's GSI; with BDF it is learnt from the events")
    parser.add_argument("--seconds", type=float, help="record for so long (default: 10, or until --count)")
    parser.add_argument("--count", help="stop after so many interrupts")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument("--json-to", metavar="FILE", help="the result as JSON into a file")


def run(arguments: argparse.Namespace) -> int:
    """Trace and print; 0 if interrupts were seen and no event was lost, else 1."""
    from vfio_intx.observe.collect import Tracer
    from vfio_intx.observe.collect import run as run_tracer
    from vfio_intx.observe.target import resolve

    if arguments.bdf is None and (arguments.gsi is None or arguments.pid is None):
        raise UsageError("name a line: a BDF, or --gsi N with --pid PID", hint="vfio-intx status lists both")
    if arguments.seconds is not None and not 0 < arguments.seconds < 1e6:
        raise UsageError("--seconds must be a positive number")
    pid = None if arguments.pid is None else parse_natural(arguments.pid, "--pid", least=1, most=1 << 22)
    gsi = None if arguments.gsi is None else Gsi(parse_natural(arguments.gsi, "--gsi", most=4095))
    count = None if arguments.count is None else parse_natural(arguments.count, "--count", least=1)
    bdf = None if arguments.bdf is None else Bdf.parse(arguments.bdf)
    seconds = arguments.seconds if arguments.seconds or count else 10.0
    root = HostRoot()
    target = resolve(root, pid=pid, gsi=gsi, bdf=bdf, irq=None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tracer = Tracer(target, root=root, pid=pid)
    report = run_tracer(tracer, seconds=seconds, count=count)
    _print(report, arguments)
    return 0 if report.summary.interrupts and not report.lost_events else 1


def _print(report: Report, arguments: argparse.Namespace) -> None:
    from vfio_intx.observe.report import to_json

    payload = to_json(report)
    if arguments.json_to:
        print_json("trace/1", payload, to=Path(arguments.json_to))
    if arguments.json:
        print_json("trace/1", payload)
    elif not arguments.json_to:
        _print_table(report)


def _print_table(report: Report) -> None:
    from rich.table import Table

    out = console()
    table = Table(title=f"GSI {report.target.gsi}: {report.summary.interrupts} interrupts in {report.seconds:.1f} s")
    table.add_column("stage")
    for name in ("p50", "p90", "p99", "p99.9", "max", "share"):
        table.add_column(name, justify="right")
    for stage in report.summary.stages():
        table.add_row(stage.stage.value, *(f"{value:.1f}" for value in stage.us.values()), f"{stage.share:.0%}")
    out.print(table)
    evidence = report.summary.evidence()
    if evidence is not None:
        out.print(evidence.text)
    for name, count in report.anomaly_counts.items():
        out.print(f"{count} {name}")
