"""``tools/bench trace``: what tracing costs at the kernel's own ceiling, beside ``trace-cmd record`` and ``report``.

    tools/bench trace [--count N] [--rounds N] [--json]

The load is the micro VM whose irqfd fires itself: no userspace takes part. In turns, in one run: the load alone, the
load with ``vfio-intx trace`` beside it, the load with ``trace-cmd record`` (same events and filters, private instance)
and then ``trace-cmd report`` to text. Every CPU second counts, start-up included. Added latency is the difference of
the times between two interrupts with and without tracing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.abi import kvm
from vfio_intx.deadline import Deadline
from vfio_intx.errors import VfioIntxError
from vfio_intx.host.root import HostRoot
from vfio_intx.microvm.bench import Ceiling
from vfio_intx.names import Gsi
from vfio_intx.observe.events import Enable, plan
from vfio_intx.observe.target import resolve
from vfio_intx.observe.tracefs import find_tracefs, remove

#: Not the one that other users of the micro VM take: events carry no VM.
GSI = 23
CORES_MOST = 1.0
#: Files that some kernels (without function tracing for us) refuse to open and trace-cmd insists on.
REFUSED = ("set_ftrace_filter", "set_ftrace_notrace", "set_ftrace_pid", "set_ftrace_notrace_pid")


@dataclass
class Turn:
    """One turn: what the guest counted, how long it took, and what the tracer beside it said and used."""

    interrupts: int
    seconds: float
    cpu_s: float = 0.0
    events: int = 0
    lost: int = 0
    spans: int = 0

    @property
    def us_each(self) -> float:
        """Microseconds from one interrupt to the next."""
        return self.seconds / self.interrupts * 1e6 if self.interrupts else 0.0


class Load:
    """The micro VM in a process of its own, which waits for the word to begin."""

    def __init__(self, count: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--load", str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if not ready:
            sys.exit("tools/bench trace: the load did not come up; see above")
        self.pid = self._process.pid
        self.gsi = json.loads(ready)["gsi"]

    def run(self) -> Turn:
        """Begin, wait for its end: the guest's own count of everything, to the last interrupt."""
        out, _ = self._process.communicate("go\n")
        found = json.loads(out.splitlines()[-1])
        return Turn(found["interrupts"], found["seconds"])


def load(count: int) -> None:
    """The child's half."""
    kvm_fd = kvm.open_kvm("/dev/kvm")
    ceiling = Ceiling(kvm_fd, gsi=GSI)
    print(json.dumps({"gsi": int(ceiling.figures.gsi)}), flush=True)
    sys.stdin.readline()
    ceiling.begin()
    Deadline.after("the load", 600.0).poll(lambda: ceiling.progress() >= count, most_s=0.01)
    ceiling.end()
    print(json.dumps({"interrupts": ceiling.total(), "seconds": ceiling.figures.seconds}), flush=True)
    os._exit(0)


def used(pid: int) -> float:
    """Reap a child; its CPU seconds and those of its own children."""
    _, _, usage = os.wait4(pid, 0)
    return usage.ru_utime + usage.ru_stime


def alone(count: int) -> Turn:
    """The load with nobody looking."""
    return Load(count).run()


def with_ours(count: int, folder: Path) -> Turn:
    """The load with ``vfio-intx trace`` beside it."""
    machine = Load(count)
    result = folder / "trace.json"
    words = [
        "trace",
        "--pid",
        str(machine.pid),
        "--gsi",
        str(machine.gsi),
        "--seconds",
        "600",
        "--json-to",
        str(result),
    ]
    tracer = subprocess.Popen([sys.executable, "-m", "vfio_intx", *words])
    wait_recording(f"vfio-intx-{tracer.pid}-")
    turn = machine.run()
    tracer.send_signal(signal.SIGTERM)
    turn.cpu_s = used(tracer.pid)
    tracer.returncode = 0
    found = json.loads(result.read_text())
    turn.events, turn.lost, turn.spans = found["cost"]["events"], found["lost_events"], found["interrupts"]
    return turn


def wait_recording(prefix: str) -> None:
    """Wait until an instance of that name records. Exits if it never does."""
    instances = find_tracefs(HostRoot()) / "instances"

    def recording() -> bool:
        with contextlib.suppress(OSError):
            return any((at / "tracing_on").read_text().strip() == "1" for at in instances.glob(f"{prefix}*"))
        return False

    if not Deadline.after("the tracer records", 20.0).poll(recording):
        sys.exit("tools/bench trace: the tracer does not record")


def with_trace_cmd(count: int, folder: Path) -> Turn:
    """The load with ``trace-cmd record`` beside it, and the report of it afterwards."""
    machine = Load(count)
    tracefs = find_tracefs(HostRoot())
    name = f"bench-trace-{os.getpid()}"
    instance = tracefs / "instances" / name
    instance.mkdir()
    try:
        target, _ = resolve(HostRoot(), pid=machine.pid, gsi=Gsi(machine.gsi), bdf=None)
        data, text = folder / "trace.dat", folder / "report.txt"
        record = ["trace-cmd", "record", "-q", "-d", "-B", name, "-b", "16384", "-C", "mono", "-o", str(data)]
        for enable in plan(target):
            record += ["-e", enable.point.path.replace("/", ":"), *filter_words(enable)]
        script = "".join(f"mount --bind {folder}/empty {at}/{file}; " for at in (tracefs, instance) for file in REFUSED)
        (folder / "empty").touch()
        recorder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f'{script} exec "$@"', "sh", *record],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_recording(name)
        Deadline.after("trace-cmd switched its events on", 3.0).poll(lambda: enabled(instance))
        turn = machine.run()
        recorder.send_signal(signal.SIGINT)
        turn.cpu_s = used(recorder.pid)
        recorder.returncode = 0
        with text.open("w") as out:
            reporter = subprocess.Popen(
                ["trace-cmd", "report", "-q", "-i", str(data)], stdout=out, stderr=subprocess.DEVNULL
            )
            turn.cpu_s += used(reporter.pid)
            reporter.returncode = 0
        with text.open() as lines:
            turn.events = sum(": kvm_" in line for line in lines)
        return turn
    finally:
        remove(instance)


def enabled(instance: Path) -> bool:
    """Whether the first stage, which is switched on last, is on."""
    return (instance / "events/kvm/kvm_set_irq/enable").read_text().startswith("1")


def filter_words(enable: Enable) -> list[str]:
    """The filter of an event as trace-cmd takes it."""
    return ["-f", enable.filter] if enable.filter else []


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300_000, help="interrupts in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load)
    if shutil.which("trace-cmd") is None:
        sys.exit("tools/bench trace: trace-cmd is missing\n  try: apt-get install trace-cmd")
    try:
        find_tracefs(HostRoot())
    except VfioIntxError as error:
        sys.exit(f"tools/bench trace: {error}\n  try: {error.hint}")
    turns: dict[str, list[Turn]] = {"alone": [], "vfio-intx trace": [], "trace-cmd": []}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(arguments.rounds):
            turns["alone"].append(alone(arguments.count))
            turns["vfio-intx trace"].append(with_ours(arguments.count, Path(name)))
            turns["trace-cmd"].append(with_trace_cmd(arguments.count, Path(name)))
    return show(turns, arguments.json)


def show(turns: dict[str, list[Turn]], as_json: bool) -> int:
    """The table or JSON, and the verdict on the targets."""
    base = statistics.median(turn.us_each for turn in turns["alone"])
    rows = {}
    for name, found in turns.items():
        cpu, events = sum(turn.cpu_s for turn in found), sum(turn.events for turn in found)
        rows[name] = {
            "interrupts": [turn.interrupts for turn in found],
            "per_second": round(statistics.median(turn.interrupts / turn.seconds for turn in found)),
            "added_us": round(statistics.median(turn.us_each for turn in found) - base, 2),
            "cpu_share": round(cpu / sum(turn.seconds for turn in found), 3),
            "events": events,
            "events_per_cpu_s": round(events / cpu) if cpu else 0,
        }
    ours = turns["vfio-intx trace"]
    exact = all(turn.spans == turn.interrupts for turn in ours)
    lost = sum(turn.lost for turn in ours)
    ratio = rows["vfio-intx trace"]["events_per_cpu_s"] / max(1, rows["trace-cmd"]["events_per_cpu_s"])
    share = rows["vfio-intx trace"]["cpu_share"]
    if as_json:
        print(json.dumps({"rows": rows, "exact": exact, "lost": lost, "ratio_to_trace_cmd": round(ratio, 2)}, indent=2))
    else:
        print(f"{'':<18}{'per second':>12}{'added us':>10}{'of one core':>13}{'events/CPU s':>14}")
        for name, row in rows.items():
            print(
                f"{name:<18}{row['per_second']:>12,}{row['added_us']:>10}{row['cpu_share']:>12.1%}{row['events_per_cpu_s']:>14,}"
            )
        print(f"spans {[turn.spans for turn in ours]}, counted by the guest {[turn.interrupts for turn in ours]}")
        print(f"lost events: {lost}; events per CPU second: {ratio:.2f} times trace-cmd's")
    good = exact and not lost and ratio >= 1.0 and share <= CORES_MOST
    print(
        f"targets (exact, none lost, at least trace-cmd's rate, at most one core): {'met' if good else 'MISSED'}",
        file=sys.stderr,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
