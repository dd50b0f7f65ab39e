"""``vfio-intx trace``: time every stage of every interrupt of one line."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_intx.cli.output import as_json, console, print_json
from vfio_intx.errors import KernelError, UsageError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, Gsi, escape, parse_natural

if TYPE_CHECKING:
    from vfio_intx.observe.collect import Report, Tracer
    from vfio_intx.observe.events import Target
    from vfio_intx.observe.export import Export, WholeFile
    from vfio_intx.observe.span import Span
    from vfio_intx.observe.timeline import Timeline

_LIVE_S = 0.25
_SHOWN_ANOMALIES = 8
#: Far more objects between two runs of the collector: events and spans make no cycles, it would only walk them.
_COLLECT_AFTER = 200_000

EPILOG = """\
needs root; times are in microseconds
exit status 0 if interrupts were seen, none of their events was lost and the VM lived on
without a card: --pid and --gsi as vfio-intx bench --ceiling prints them

examples:
  vfio-intx trace 05:00.0 --seconds 10
  vfio-intx trace 05:00.0 --count 1000 --html line.html --perfetto line.json
  vfio-intx trace --pid 4711 --gsi 16 --seconds 5 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``trace``."""
    parser.add_argument("bdf", nargs="?", metavar="BDF", help="the passed-through device")
    parser.add_argument("--pid", metavar="PID", help="the VM's process; with BDF it is found")
    parser.add_argument(
        "--gsi", metavar="GSI", help="the line, as the guest's GSI; with BDF it is learnt from the events"
    )
    parser.add_argument("--seconds", metavar="S", type=float, help="record for so long (default: 10, or until --count)")
    parser.add_argument("--count", metavar="N", help="stop after so many interrupts")
    parser.add_argument(
        "--buffer-kb", metavar="KB", help="buffer of each CPU (default: by the number of CPUs, 16384 at most)"
    )
    parser.add_argument(
        "--cost", action="store_true", help="measure afterwards what tracing adds to an interrupt here (micro VM, 3 s)"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument("--json-to", type=Path, metavar="FILE", help="the result as JSON into a file")
    parser.add_argument("--spans", type=Path, metavar="FILE", help="every interrupt, one JSON object a line")
    parser.add_argument("--perfetto", type=Path, metavar="FILE", help="a trace for ui.perfetto.dev, chrome://tracing")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="a page with timeline and histograms; needs no network"
    )


def run(arguments: argparse.Namespace) -> int:
    """Trace and print; 0 if interrupts were seen, none of their events was lost and the VM lived on, else 1."""
    from vfio_intx.observe.collect import Tracer
    from vfio_intx.observe.collect import run as run_tracer
    from vfio_intx.observe.target import need_kvm
    from vfio_intx.observe.timeline import Timeline, render

    # What cannot be meant is said before anything of the machine is looked at.
    seconds, count, size_kb = _limits(arguments)
    _check_files(arguments)
    target, pid = _target(arguments)
    name = _name(arguments, target, pid)
    timeline = Timeline() if arguments.html else None
    gc.set_threshold(_COLLECT_AFTER)
    with contextlib.ExitStack() as stack:
        page, data = (_whole_file(stack, path) for path in (arguments.html, arguments.json_to))
        exports = [stack.enter_context(export) for export in _exports(arguments, name)]
        need_kvm(HostRoot(), pid)
        tracer = Tracer(target, root=HostRoot(), pid=pid, size_kb=size_kb, sink=_sink(exports, timeline))
        stopped = stack.enter_context(_signals())

        def ended() -> bool:
            return bool(stopped or _failed(exports))

        # While its line is on the terminal, rich sends there what is printed to stdout.
        with _live() as tell:
            report = run_tracer(tracer, seconds=seconds, count=count, stop=ended, tell=tell)
        _to_all(exports, lambda export: export.note(report.anomalies))
        added_us = _added_us() if arguments.cost else None
        payload = _payload(report, added_us)
        # Before the files, which a full disk may refuse.
        if arguments.json:
            print_json("trace/1", payload)
        else:
            _print_table(report, name, added_us)
        if data is not None:
            data.put(as_json("trace/1", payload))
        if page is not None and timeline is not None:
            page.put(render(report, timeline, name, _where()).encode())
    if failure := _failed(exports):
        raise failure
    return 0 if report.summary.interrupts and not report.lost_events and report.ended != "vm-gone" else 1


def _target(arguments: argparse.Namespace) -> tuple[Target, int | None]:
    from vfio_intx.observe.target import resolve

    if arguments.bdf is None and (arguments.gsi is None or arguments.pid is None):
        raise UsageError("name a line: a BDF, or --gsi N with --pid PID", hint="vfio-intx status lists both")
    bdf = None if arguments.bdf is None else Bdf.parse(arguments.bdf)
    pid = None if arguments.pid is None else parse_natural(arguments.pid, "--pid", least=1, most=1 << 22)
    gsi = None if arguments.gsi is None else Gsi(parse_natural(arguments.gsi, "--gsi", most=4095))
    return resolve(HostRoot(), pid=pid, gsi=gsi, bdf=bdf)


def _limits(arguments: argparse.Namespace) -> tuple[float | None, int | None, int | None]:
    if arguments.seconds is not None and not 0 < arguments.seconds < 1e7:
        raise UsageError("--seconds must be a positive number")
    count = None if arguments.count is None else parse_natural(arguments.count, "--count", least=1)
    buffer = arguments.buffer_kb
    size_kb = None if buffer is None else parse_natural(buffer, "--buffer-kb", least=64, most=1 << 20)
    return arguments.seconds if arguments.seconds or count else 10.0, count, size_kb


def _name(arguments: argparse.Namespace, target: Target, pid: int | None) -> str:
    line = str(Bdf.parse(arguments.bdf)) if arguments.bdf else f"GSI {target.gsi}"
    return f"{line} of process {pid}" if pid is not None else line


def _exports(arguments: argparse.Namespace, name: str) -> Iterator[Export]:
    from vfio_intx.observe.export import PerfettoFile, SpansFile

    if arguments.spans is not None:
        yield SpansFile(arguments.spans)
    if arguments.perfetto is not None:
        yield PerfettoFile(arguments.perfetto, name)


def _check_files(arguments: argparse.Namespace) -> None:
    """:raise UsageError: two results would go into one file."""
    options = {"--html": arguments.html, "--json-to": arguments.json_to}
    options |= {"--spans": arguments.spans, "--perfetto": arguments.perfetto}
    taken: dict[Path, str] = {}
    for option, path in options.items():
        if path is not None and (path.is_file() or not path.exists()):
            other = taken.setdefault(path.resolve(), option)
            if other != option:
                raise UsageError(f"{other} and {option} name the same file, {escape(str(path))}")


def _to_all(exports: list[Export], put: Callable[[Export], None]) -> None:
    """Do it for each that has not failed. A full disk ends the run, but neither the others nor the result."""
    for export in exports:
        if export.failure is None:
            with contextlib.suppress(KernelError):
                put(export)


def _failed(exports: list[Export]) -> KernelError | None:
    return next((export.failure for export in exports if export.failure), None)


def _sink(exports: list[Export], timeline: Timeline | None) -> Tracer.Sink:
    def take(spans: list[Span]) -> None:
        _to_all(exports, lambda export: export.add(spans))
        if timeline is not None:
            timeline.add(spans)

    return take


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when somebody asks us to stop: the run then ends as any other, with its result."""
    asked: list[int] = []
    # A terminal that goes away (SIGHUP) asks for an end, too; what nohup or a shell has us ignore stays ignored.
    before = {
        number: signal.signal(number, lambda got, _: asked.append(got))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _live() -> Iterator[Tracer.Tell]:
    """A line on stderr that follows the run, on a terminal only."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield lambda tracer: None
        return
    shown = 0.0
    with err.status("recording") as status:

        def tell(tracer: Tracer) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= _LIVE_S:
                shown = now
                status.update(f"{tracer.elapsed_s():.1f} s, {tracer.summary.interrupts:,} interrupts")

        yield tell


def _whole_file(stack: contextlib.ExitStack, path: Path | None) -> WholeFile | None:
    from vfio_intx.observe.export import WholeFile

    return None if path is None else stack.enter_context(WholeFile(path))


def _where() -> str:
    from vfio_intx import __version__

    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"Linux {os.uname().release}, vfio-intx {__version__}, {now}."


def _added_us() -> float:
    from vfio_intx.cli.trace_cost import measure_added_us

    return measure_added_us(HostRoot())


def _payload(report: Report, added_us: float | None) -> dict[str, object]:
    from vfio_intx.observe.report import to_json

    payload = to_json(report)
    if added_us is not None:
        payload["cost"] = {**dict(payload["cost"]), "added_us": added_us}  # type: ignore[call-overload]
    return payload


def _print_table(report: Report, name: str, added_us: float | None = None) -> None:
    from rich.table import Table

    out = console()
    summary = report.summary
    table = Table(title=f"{name}, {summary.interrupts:,} interrupts in {report.seconds:.1f} s (microseconds)")
    table.add_column("stage")
    for column in ("p50", "p90", "p99", "p99.9", "max", "share"):
        table.add_column(column, justify="right")
    for stage in summary.stages():
        table.add_row(stage.stage.value, *(f"{value:,.1f}" for value in stage.us.values()), f"{stage.share:.1%}")
    if whole := summary.whole.microseconds():
        table.add_row("whole", *(f"{value:,.1f}" for value in whole.values()), "", style="bold")
    if table.rows:
        out.print(table)
    else:
        out.print(table.title, markup=False)
    for line in _words(report):
        out.print(line, markup=False)
    if added_us is not None:
        out.print(f"tracing adds {added_us} us from one interrupt to the next, at this host's ceiling")


def _words(report: Report) -> Iterator[str]:
    summary, cost = report.summary, report.cost
    if not summary.interrupts and report.handled:
        yield f"vfio's handler ran {report.handled:,} times on the host, and nothing of it was seen to reach a guest."
        yield "  try: vfio-intx status, which tells whether the line is masked; it opens with vfio-intx kick BDF"
    elif not summary.interrupts:
        yield "No interrupt of this line was seen: the card is quiet, or the line is masked."
        yield "  try: vfio-intx status, which tells the two apart; a stuck line opens with vfio-intx kick BDF"
    if evidence := summary.evidence():
        yield f"{evidence.text}; {summary.wakeups_per_interrupt} wake-ups of userspace each"
    if report.ended not in ("time", "count", "stopped"):
        yield f"The run ended early: {report.ended}"
    if report.lost_events:
        yield f"{report.lost_events} events were LOST: the buffer was too small (--buffer-kb) or this machine too busy"
    if report.without:
        yield f"This kernel has no {', '.join(report.without)}."
    for kind, count in report.anomaly_counts.items():
        yield f"{count:,} {kind}"
    for anomaly in report.anomalies[:_SHOWN_ANOMALIES]:
        yield f"  {anomaly.time / 1e9:.6f} {anomaly.oddity.value}: {escape(anomaly.detail)}"
    if len(report.anomalies) > _SHOWN_ANOMALIES:
        yield "  … more of them with --json or --html"
    share = cost.cpu_s / report.seconds if report.seconds else 0.0
    yield f"cost: {cost.events:,} events, {cost.cpu_s:.2f} s of CPU ({share:.1%} of one core)"
