"""``vfio-intx bench``: the schemes side by side on this host's KVM, and the most that any of them could reach."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.cli.text import screen_columns, wrapped
from vfio_intx.errors import UsageError
from vfio_intx.host.kernel import read_kernel
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, parse_natural

if TYPE_CHECKING:
    from vfio_intx.microvm.figures import BenchFigures, SchemeFigures

_DEFAULT_COUNT, _MOST_COUNT = 10_000, 10_000_000
_MOST_SECONDS = 86_400
_BAR_CELLS = 40
_STATUS_INTERRUPTED = 130

EPILOG = """\
needs /dev/kvm (root, or its group); --device needs root and a function on vfio-pci that no VM uses
SCHEME is one of irqfd, ack-eventfd, split, trap, edge; times are in microseconds

examples:
  vfio-intx bench
  vfio-intx bench --scheme irqfd --scheme trap --count 100000 --plot race.svg
  vfio-intx bench --device 05:00.0 --count 1000 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "--scheme", metavar="SCHEME", action="append", help="only this scheme (more than once for several)"
    )
    parser.add_argument("--device", metavar="BDF", help="through the real line of this device, which is on vfio-pci")
    parser.add_argument(
        "--count", metavar="N", help=f"interrupts for each scheme (default {_DEFAULT_COUNT}, most {_MOST_COUNT})"
    )
    parser.add_argument("--json", action="store_true", help="print vfio-intx/bench/1 instead of a table")
    parser.add_argument("--plot", metavar="FILE", help="also draw the round trips into this SVG file")
    parser.add_argument("--ceiling", action="store_true", help="only run the ceiling, as a load on the host's KVM")
    parser.add_argument(
        "--seconds", metavar="S", help="with --ceiling: for so long (default 2); Ctrl-C ends it earlier"
    )


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Race and print; 130 after Ctrl-C, with the figures there were by then."""
    root = root or HostRoot()
    schemes = _schemes(arguments.scheme)
    plot = _plot_file(arguments.plot)
    if arguments.seconds is not None and not arguments.ceiling:
        raise UsageError("--seconds goes with --ceiling", hint="without it, say how many: --count N")
    if arguments.device is not None and arguments.ceiling:
        raise UsageError("--ceiling has no device in it", hint="leave one of --device and --ceiling out")
    bdf = Bdf.parse(arguments.device) if arguments.device is not None else None
    # What cannot be meant is said before anything of the machine is looked at.
    _count(arguments.count, _DEFAULT_COUNT)
    _seconds(arguments.seconds, 0)
    with _interrupted_once():
        kvm_fd = kvm.open_kvm(root.at("dev/kvm"))
        try:
            if arguments.ceiling:
                return _ceiling(arguments, kvm_fd, root)
            if bdf is not None:
                return _race_device(arguments, kvm_fd, bdf, schemes, plot, root)
            return _race(arguments, kvm_fd, schemes, plot, root)
        finally:
            close_all(kvm_fd)


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """The first Ctrl-C ends the race; a second does not take away the figures, nor what switches a card's INTx off.

    Both wait for nothing without a deadline. ``timeout`` sends two.
    """
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    # Elsewhere than in the main thread no signal can be handled, nor comes one.
    handled = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if handled:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:  # after one we are on our way out
            signal.signal(signal.SIGINT, before)


def _schemes(names: list[str] | None) -> list[Scheme]:
    wanted = [Scheme.parse(name) for name in names or []]
    return [scheme for scheme in Scheme if scheme in wanted] or list(Scheme)


def _plot_file(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    if path.suffix != ".svg":
        raise UsageError(f"--plot draws SVG only, not {path.suffix or 'a file without a suffix'}", hint="name it *.svg")
    if not path.parent.is_dir():
        raise UsageError(f"--plot: there is no directory {path.parent}")
    return path


def _count(text: str | None, otherwise: int) -> int:
    if text is None:
        return otherwise
    return parse_natural(text, "--count", least=1, most=_MOST_COUNT)


def _seconds(text: str | None, otherwise: float) -> float:
    return otherwise if text is None else parse_natural(text, "--seconds", least=1, most=_MOST_SECONDS)


def _race(arguments: argparse.Namespace, kvm_fd: int, schemes: list[Scheme], plot: Path | None, root: HostRoot) -> int:
    from vfio_intx.microvm.bench import race

    count = _count(arguments.count, _DEFAULT_COUNT)
    return _show(race(kvm_fd, schemes, count, progress=_Progress()), {}, arguments, plot, root)


def _race_device(
    arguments: argparse.Namespace, kvm_fd: int, bdf: Bdf, schemes: list[Scheme], plot: Path | None, root: HostRoot
) -> int:
    from vfio_intx.microvm.device_bench import device_payload, race_device
    from vfio_intx.wiring.device_files import open_device

    count = _count(arguments.count, _DEFAULT_COUNT)
    with open_device(root, bdf) as opened:
        raced = race_device(kvm_fd, opened, root, schemes, count, progress=_Progress())
    device = device_payload(raced)
    if not arguments.json:
        made = f"its own interrupt, as {raced.card}" if raced.card else "VFIO's software trigger (no card file)"
        counted = ", ".join(f"{scheme.value} {number}" for scheme, number in raced.host_interrupts.items())
        print(f"{raced.bdf} ({raced.ids}): {made}; host IRQ {raced.host_irq} counted {counted}\n")
    return _show(raced.bench, {"device": device}, arguments, plot, root)


def _show(
    figures: BenchFigures, extra: dict[str, object], arguments: argparse.Namespace, plot: Path | None, root: HostRoot
) -> int:
    if arguments.json:
        from vfio_intx.cli.output import print_json
        from vfio_intx.microvm.figures import payload

        print_json("bench/1", {**payload(figures, _host(root)), **extra})
    else:
        _print_table(figures)
    if plot is not None:
        _draw(figures, plot)
    if figures.partial:
        print("vfio-intx bench: interrupted; these are the figures of the rounds that had ended", file=sys.stderr)
        return _STATUS_INTERRUPTED
    return 0


def _ceiling(arguments: argparse.Namespace, kvm_fd: int, root: HostRoot) -> int:
    from vfio_intx.cli.output import print_json
    from vfio_intx.microvm.bench import CEILING_S, Ceiling
    from vfio_intx.microvm.figures import ceiling_payload

    count = _count(arguments.count, 0) or None
    default = CEILING_S if count is None else _MOST_SECONDS
    seconds = _seconds(arguments.seconds, default)
    ceiling = Ceiling(kvm_fd)
    partial = False
    try:
        try:
            # Inside: whoever reads this line may press Ctrl-C before the next one.
            print(f"ceiling: pid {os.getpid()} gsi {ceiling.figures.gsi}", file=sys.stderr, flush=True)
            ceiling.run(seconds, count)
        except KeyboardInterrupt:
            partial = True
    finally:
        ceiling.close()
    figures = ceiling.figures
    if arguments.json:
        said = {"pid": os.getpid(), "partial": partial, "ceiling": ceiling_payload(figures)}
        print_json("bench/1", {"host": _host(root), **said, "schemes": []})
    else:
        print(f"{figures.interrupts} interrupts in {figures.seconds:.3f} s: {figures.rate:.0f} a second")
    return _STATUS_INTERRUPTED if partial else 0


def _host(root: HostRoot) -> dict[str, object]:
    from vfio_intx.host.cpu import read_cpu

    kernel, cpu = read_kernel(root), read_cpu(root)
    return {
        "kernel": kernel.release.value,
        "kvm": list(kernel.kvm),
        "cpu": cpu.model.value,
        "virtual": cpu.virtual.value,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


class _Progress:
    """One line on stderr that rewrites itself, on a terminal only."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, done: int, of: int) -> None:
        if self._shown:
            end = "\r\x1b[K" if done == of else ""
            print(f"\rbench: round {done} of {of}{end}", end="", file=sys.stderr, flush=True)


#: Two tables, since one would be wider than a terminal of 80 columns.
_COUNTS = ("scheme", "pin", "triggers", "handler", "acked", "lost", "repeated", "wake-ups")
_TRIPS = ("scheme", "pin", "p50 us", "p99", "p99.9", "max", "per s", "p50 x", "p99 x")


def _print_table(figures: BenchFigures) -> None:
    _print_columns([_COUNTS, *map(_counts, figures.schemes)])
    print()
    _print_columns([_TRIPS, *(_trips(figures, row) for row in figures.schemes)])
    if figures.ceiling is not None:
        print(f"\nceiling, an irqfd that is its own resample eventfd: {figures.ceiling.rate:.0f} a second")
    _print_bars(figures)
    for figure in figures.schemes:
        for note in figure.notes:
            print(wrapped(f"{figure.scheme.value} ({figure.pin.label}): {note}", screen_columns(), hang=4))


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Names to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        print("  ".join([*names, *(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))]))


def _counts(row: SchemeFigures) -> Sequence[str]:
    counts = (row.triggers, row.handler_runs, row.acknowledged, row.lost, row.repeated)
    return (row.scheme.value, row.pin.label, *map(str, counts), f"{row.wakeups_per_interrupt:.2f}")


def _trips(figures: BenchFigures, row: SchemeFigures) -> Sequence[str]:
    trip, ratios = row.round_trip, figures.ratios(row)
    trips = (
        [f"{value:.1f}" if value < 100_000 else f"{value:.0f}" for value in (trip.p50, trip.p99, trip.p999, trip.max)]
        if trip
        else ["-"] * 4
    )
    compared = [f"{ratio:.2f}" for ratio in ratios] if ratios else ["-", "-"]
    return (row.scheme.value, row.pin.label, *trips, f"{row.rate:.0f}", *compared)


def _print_bars(figures: BenchFigures) -> None:
    from vfio_intx.cli.output import console
    from vfio_intx.microvm.chart import bar_length

    if not sys.stdout.isatty():
        return
    out = console()
    longest = max((row.round_trip.p50 for row in figures.schemes if row.round_trip), default=0.0)
    out.print("\nround trip, p50")
    for row in figures.schemes:
        label = f"{row.scheme.value} ({row.pin.label})"
        if row.round_trip is None:
            out.print(f"  {label:<22} nothing ever came back", style="red")
            continue
        bar = "█" * bar_length(row.round_trip.p50, longest, _BAR_CELLS)
        out.print(f"  {label:<22} [blue]{bar}[/blue] {row.round_trip.p50:.1f} us")


def _draw(figures: BenchFigures, path: Path) -> None:
    from vfio_intx.microvm.chart import svg
    from vfio_intx.observe.export import WholeFile

    triggers = max((row.triggers for row in figures.schemes), default=0)
    with WholeFile(path) as file:
        file.put(svg(figures, f"INTx schemes on this host's KVM, {triggers} interrupts each").encode())
