"""``tools/bench watch``: what ``status --watch`` costs for many lines, on a fake host.

    tools/bench watch [--lines N] [--ticks N]

A tick reads the interrupt table once and eight bytes of each device. The share of a core is that of one tick a second,
with the table drawn for a terminal of the usual size.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from vfio_intx.cli.watch import View, _screen
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.observe.watch import Watcher

MOST_TICK_MS, MOST_SHARE = 200.0, 0.03


def fake_host(folder: Path, lines: int) -> HostRoot:
    """A tree with *lines* devices, each on a line of its own."""
    rows = ["           CPU0       CPU1"]
    for number in range(lines):
        bdf = Bdf(0, 1 + number // 32, number % 32, 0)
        device = folder / "sys/bus/pci/devices" / str(bdf)
        (device / "power").mkdir(parents=True)
        (device / "power/runtime_status").write_text("active\n")
        (device / "config").write_bytes(bytes.fromhex("8680100e0701100000000000") + bytes(52))
        rows.append(f" {30 + number}: {number:10} {0:10}   IO-APIC   {number}-fasteoi   vfio-intx({bdf})")
    (folder / "proc").mkdir()
    (folder / "proc/interrupts").write_text("\n".join(rows) + "\n")
    return HostRoot(folder)


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=64)
    parser.add_argument("--ticks", type=int, default=30)
    arguments = parser.parse_args()
    console = Console(file=io.StringIO(), width=120, height=80, force_terminal=True)
    with tempfile.TemporaryDirectory() as name:
        watcher = Watcher(fake_host(Path(name), arguments.lines))
        watcher.tick()
        walls, cpus = [], []
        for _ in range(arguments.ticks):
            wall, cpu = time.perf_counter(), time.process_time()
            rows = watcher.tick()
            walls.append(time.perf_counter() - wall)
            console.print(_screen(View(), rows, {}))
            cpus.append(time.process_time() - cpu)
    tick_ms, share = statistics.median(walls) * 1000, statistics.median(cpus)
    drawn = f"with drawing {share * 1000:.1f} ms of CPU: {share:.1%} of a core at 1 Hz"
    print(f"{arguments.lines} lines: a tick {tick_ms:.1f} ms, {drawn}")
    good = tick_ms <= MOST_TICK_MS and share <= MOST_SHARE
    print(f"targets ({MOST_TICK_MS:g} ms, {MOST_SHARE:.0%} of a core): {'met' if good else 'MISSED'}", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
