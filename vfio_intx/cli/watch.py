"""``vfio-intx status --watch``: the lines of this host, redrawn calmly, with keys to sort and to open a line."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from vfio_intx.cli.output import console
from vfio_intx.cli.vm import treat_termination_as_interrupt
from vfio_intx.deadline import Deadline
from vfio_intx.errors import VfioIntxError
from vfio_intx.names import Bdf, escape
from vfio_intx.observe.watch import Row, Watcher

if TYPE_CHECKING:
    from rich.text import Text

    from vfio_intx.observe.status import VmStatus
    from vfio_intx.observe.traced import Traced
    from vfio_intx.wiring.line import LineReport

    Known = Mapping[Bdf, tuple[VmStatus, LineReport]]

_WORST = ["idle", "healthy", "unknown", "waiting", "masked", "storming", "polling", "stuck"]
_SORTS: tuple[tuple[str, Callable[[Row], object]], ...] = (
    ("device", lambda row: row.bdf),
    ("rate", lambda row: (-row.rate, row.bdf)),
    ("state", lambda row: (-_WORST.index(row.state.word.value), row.bdf)),
)
_STYLES = {"stuck": "bold red", "storming": "bold red", "polling": "bold red", "masked": "yellow", "waiting": "yellow"}
_HEADS = ("device", "VM", "scheme", "GSI", "host IRQ", "a second", "last", "ack p50/p99 us", "state")
_RIGHT = (3, 4, 5, 6, 7)
_HELP = "s sort   j k or arrows move   enter detail   q quit"
#: How a terminal sends its arrow keys in either of its two modes.
_MOVES = {"j": 1, "k": -1, "\x1b[B": 1, "\x1b[A": -1, "\x1bOB": 1, "\x1bOA": -1}
#: Seconds before all VMs are asked again: the first time, and at most.
_ROSTER_S, _ROSTER_MOST_S = 5.0, 60.0


class View:
    """What the keys have chosen. :meth:`press` is all that changes it."""

    def __init__(self) -> None:
        self.sort = 0
        self.at = 0
        self.open = False
        self.quit = False

    def press(self, key: str, lines: int) -> None:
        """Take one key, with *lines* lines on the screen."""
        if key == "q":
            self.quit = True
        elif key == "s":
            self.sort = (self.sort + 1) % len(_SORTS)
        elif key in _MOVES:
            self.at = min(max(self.at + _MOVES[key], 0), max(lines - 1, 0))
        elif key in ("\r", "\n"):
            self.open = not self.open

    def order(self, rows: list[Row]) -> list[Row]:
        """The rows as they are to be shown."""
        return sorted(rows, key=_SORTS[self.sort][1])  # type: ignore[arg-type]


class Roster:
    """Which VM has which line, under which scheme.

    Asked again, in a thread, when a line appears that nobody told of (a VM has started), or when one whose scheme is
    not proven has interrupts that could prove it; ever less often while that does not help.

    :param again: asks all VMs; None where only the first answer counts.
    """

    def __init__(self, vms: tuple[VmStatus, ...], again: Callable[[], tuple[VmStatus, ...]] | None) -> None:
        self.known: Known = {line.bdf: (vm, line) for vm in vms for line in vm.lines}
        self._again = again
        self._asking: threading.Thread | None = None
        self._pause_s = _ROSTER_S
        self._rest = Deadline.after("the next question", self._pause_s)

    def see(self, rows: list[Row]) -> None:
        """Take note of the lines that there are now; those that went are forgotten. Never waits."""
        there = {row.bdf for row in rows}
        self.known = {bdf: found for bdf, found in self.known.items() if bdf in there}
        busy = self._asking is not None and self._asking.is_alive()
        if self._again is not None and any(map(self._puzzles, rows)) and not busy and self._rest.passed():
            self._asking = threading.Thread(target=self._ask, args=(self._again,), daemon=True)
            self._asking.start()

    def _puzzles(self, row: Row) -> bool:
        return row.bdf not in self.known or (row.rate > 0 and self.known[row.bdf][1].verdict.scheme is None)

    def _ask(self, again: Callable[[], tuple[VmStatus, ...]]) -> None:
        with contextlib.suppress(VfioIntxError):
            self.known = {line.bdf: (vm, line) for vm in again() for line in vm.lines}
        self._pause_s = min(self._pause_s * 2, _ROSTER_MOST_S)
        self._rest = Deadline.after("the next question", self._pause_s)


def watch(watcher: Watcher, roster: Roster, *, interval_s: float, as_json: bool, traced: Traced | None = None) -> int:
    """Watch until ``q``, Ctrl-C or SIGTERM (0); terminal and tracefs are then as before.

    :param as_json: one object a line and tick, instead of a screen.
    :param traced: where given, every line is traced besides, and the time to the acknowledge shown.
    """
    treat_termination_as_interrupt()
    with traced or contextlib.nullcontext():
        tick = _ticker(watcher, traced)
        tick()
        if as_json or not sys.stdout.isatty():
            return _stream(tick, interval_s, as_json)
        return _redraw(tick, roster, interval_s)


def _ticker(watcher: Watcher, traced: Traced | None) -> Callable[[], list[Row]]:
    def tick() -> list[Row]:
        rows = watcher.tick()
        if traced is None:
            return rows
        traced.follow(row.bdf for row in rows)
        times = traced.latencies()
        return [msgspec.structs.replace(row, ack_us=times.get(row.bdf)) for row in rows]

    return tick


def _redraw(tick: Callable[[], list[Row]], roster: Roster, interval_s: float) -> int:
    from rich.live import Live

    view = View()
    with contextlib.suppress(KeyboardInterrupt), _keys() as wait, Live(console=console(), auto_refresh=False) as live:
        rows: list[Row] = []
        due = time.monotonic()
        while not view.quit:
            if time.monotonic() >= due:
                rows = tick()
                roster.see(rows)
                due = time.monotonic() + interval_s
            live.update(_screen(view, rows, roster.known), refresh=True)
            key = wait(max(0.0, due - time.monotonic()))
            if key:
                view.press(key, len(rows))
    return 0


def _stream(tick: Callable[[], list[Row]], interval_s: float, as_json: bool) -> int:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(interval_s)
            rows = tick()
            if as_json:
                found = {"schema": "vfio-intx/watch/1", "lines": [row.as_json() for row in rows]}
                print(msgspec.json.encode(found).decode(), flush=True)
            else:
                print("\n".join(f"{row.bdf} {row.rate:.1f}/s {row.state}" for row in rows) or "no line", flush=True)
    return 0


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Single keys from the terminal, which is set back at the end; a waiting that takes keys where there is one."""
    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        yield _no_keys
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)

        def wait(seconds: float) -> str:
            ready, _, _ = select.select([fd], [], [], seconds)
            return _one_key(fd) if ready else ""

        yield wait
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _one_key(fd: int) -> str:
    key = os.read(fd, 1).decode("latin-1")
    # An arrow is three bytes sent at once; Escape itself is one, with nothing behind it.
    while key in ("\x1b", "\x1b[", "\x1bO") and select.select([fd], [], [], 0.0)[0]:
        key += os.read(fd, 1).decode("latin-1")
    return key


def _no_keys(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _screen(view: View, rows: list[Row], known: Known) -> Text:
    """The whole screen as one text: a table of rich's own costs five times as much for sixty lines."""
    from rich.text import Text

    ordered = view.order(rows)
    cells = [_HEADS, *(_cells(row, known) for row in ordered)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    text = Text(_aligned(_HEADS, widths) + "\n", style="", no_wrap=True, overflow="ellipsis")
    text.stylize("dim")
    for place, (row, line) in enumerate(zip(ordered, cells[1:], strict=True)):
        style = _STYLES.get(row.state.word.value, "")
        text.append(_aligned(line, widths) + "\n", f"reverse {style}".strip() if place == view.at else style)
    if not ordered:
        text.append("no line of this host is handled by vfio\n")
    if view.open and ordered:
        text.append("\n" + "\n".join(_detail(ordered[min(view.at, len(ordered) - 1)], known)) + "\n")
    text.append(f"\nsorted by {_SORTS[view.sort][0]}   {_HELP}", "dim")
    return text


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    cells = (
        cell.rjust(width) if column in _RIGHT else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join(cells).rstrip()


def _cells(row: Row, known: Known) -> tuple[str, ...]:
    last = "-" if row.last_s is None else f"{row.last_s:.0f} s"
    acknowledged = "-" if row.ack_us is None else "/".join(f"{value:,.0f}" for value in row.ack_us)
    return (*_names(row, known), str(row.irq), f"{row.rate:,.1f}", last, acknowledged, str(row.state))


def _names(row: Row, known: Known) -> tuple[str, str, str, str]:
    if row.bdf not in known:
        return str(row.bdf), "?", "?", "?"
    vm, line = known[row.bdf]
    scheme = line.verdict.scheme.value if line.verdict.scheme else "not proven"
    return str(row.bdf), escape(vm.name or f"pid {vm.pid}"), scheme, "?" if line.gsi is None else str(line.gsi)


def _detail(row: Row, known: Known) -> list[str]:
    words = known[row.bdf][1].in_words() if row.bdf in known else [f"{row.bdf}: its VM was not found"]
    return [*words, f"  state: {row.state}: {row.state.why}", f"  next: vfio-intx trace {row.bdf}"]
