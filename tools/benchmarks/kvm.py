"""What Python adds to the kernel's path: the micro VM's loops against the same loops in C, in turns, in one run.

    tools/bench kvm [--scheme S] [--count N] [--rounds N] [--fifo] [--json]

For each scheme both programs have their machine up all the time, and take turns of some hundred interrupts. Each turn
has its p50 and p99, and each side the median of those: what another program on the machine did to a turn or two of one
side is not in it. The ceiling is run in turns as well. A ratio of 1.00 is C.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm import guest
from vfio_intx.microvm.bench import Ceiling
from vfio_intx.microvm.contest import Contestant
from vfio_intx.microvm.guest import Pin

SOURCE = Path(__file__).with_name("kvm_line.c")
RACES = [(s, Pin.IOAPIC) for s in (Scheme.IRQFD, Scheme.ACK_EVENTFD, Scheme.SPLIT, Scheme.TRAP)] + [
    (Scheme.IRQFD, Pin.PIC)
]
#: What is promised: round trips within 1.2 times C's, the ceiling within 2 per cent of C's, a selftest of 2 s.
MOST_RATIO, LEAST_CEILING, MOST_SELFTEST_S, MOST_MIB = 1.2, 0.98, 2.0, 64


def build() -> Path:
    """The C program, compiled into the cache unless it is there."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("tools/bench kvm: no C compiler\n  try: apt-get install gcc libc6-dev linux-libc-dev")
    cache = Path(os.environ.get("VFIO_INTX_CACHE") or Path.home() / ".cache/vfio-intx")
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / f"kvm_line-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        made = program.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", made, SOURCE, "-lpthread"], check=True)
        made.rename(program)
    return program


class InC:
    """One scheme of the C program, waiting for its turns."""

    def __init__(self, program: Path, scheme: str, pin: Pin) -> None:
        image = Path(guest.__file__).with_name("line.bin")
        self._process = subprocess.Popen(
            [program, scheme, pin.label, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, request: str, words: int) -> array[int]:
        """Send one request and read its answer of that many 64-bit words."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{request}\n".encode())
        stdin.flush()
        answer = array("Q", stdout.read(8 * words))
        if len(answer) != words:
            sys.exit(f"tools/bench kvm: the C program ended with status {self._process.wait()}")
        return answer

    def close(self) -> None:
        """End it by the end of its input."""
        self._process.communicate()


@contextmanager
def devkvm() -> Iterator[int]:
    """/dev/kvm, open."""
    fd = kvm.open_kvm("/dev/kvm")
    try:
        yield fd
    finally:
        close_all(fd)


@contextmanager
def scheduled(*, fifo: bool) -> Iterator[None]:
    """Both sides alike under SCHED_FIFO, if that is asked for: nobody else of this machine then takes their CPU."""
    if fifo:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        if fifo:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def percentile(trips: Sequence[int], share: float) -> float:
    """The round trip in microseconds that *share* of the sorted *trips* (in ns) do not exceed."""
    return trips[min(len(trips) - 1, int(len(trips) * share))] / 1000


class Turns:
    """The turns of one side."""

    def __init__(self) -> None:
        self._p50: list[float] = []
        self._p99: list[float] = []
        self._lost = 0

    def add(self, trips: array[int]) -> None:
        """One turn's round trips in ns, 0 for a lost one."""
        done = sorted(trip for trip in trips if trip)
        self._lost += len(trips) - len(done)
        self._p50.append(percentile(done, 0.5))
        self._p99.append(percentile(done, 0.99))

    def figures(self) -> dict[str, float]:
        """Medians over the turns, in microseconds, and what was lost in all."""
        return {"p50": median(self._p50), "p99": median(self._p99), "lost": self._lost}


def race(fd: int, program: Path, scheme: Scheme, pin: Pin, rounds: int, count: int) -> dict[str, Any]:
    """Both programs in turns, the first turn alternating; the figures of each and their ratios."""
    with ExitStack() as stack:
        ours = Contestant(fd, scheme, pin)
        stack.callback(ours.close)
        theirs = InC(program, scheme.value, pin)
        stack.callback(theirs.close)
        theirs.ask("race 10", 10)
        turns = {"python": Turns(), "c": Turns()}
        durations = array("Q", bytes(8 * count))

        def python() -> None:
            ours.race(count, durations)
            turns["python"].add(durations)

        def c() -> None:
            turns["c"].add(theirs.ask(f"race {count}", count))

        for turn in range(rounds):
            for side in (python, c) if turn % 2 else (c, python):
                side()
    figures = {name: found.figures() for name, found in turns.items()}
    ratio = {rank: figures["python"][rank] / figures["c"][rank] for rank in ("p50", "p99")}
    return {"scheme": scheme.value, "pin": pin.label, **figures, "ratio": ratio}


def race_ceiling(fd: int, program: Path, rounds: int, ms: int) -> dict[str, float]:
    """The ceiling in turns: the median turn of either side in interrupts a second, and the median of ours / C's."""
    with ExitStack() as stack:
        ours = Ceiling(fd)
        stack.callback(ours.close)
        theirs = InC(program, "ceiling", Pin.IOAPIC)
        stack.callback(theirs.close)
        rates: dict[str, list[float]] = {"python": [], "c": []}

        def python() -> None:
            interrupts, seconds = ours.figures.interrupts, ours.figures.seconds
            ours.run(ms / 1000)
            rates["python"].append((ours.figures.interrupts - interrupts) / (ours.figures.seconds - seconds))

        def c() -> None:
            interrupts, nanoseconds = theirs.ask(f"run {ms}", 2)
            rates["c"].append(interrupts / nanoseconds * 1e9)

        for turn in range(rounds):
            for side in (python, c) if turn % 2 else (c, python):
                side()
        share = median(mine / other for mine, other in zip(rates["python"], rates["c"], strict=True))
        return {"python": median(rates["python"]), "c": median(rates["c"]), "share": share}


def main() -> int:
    """Run everything; 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(prog="tools/bench kvm", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=500, help="interrupts in a turn (default 500)")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each side (default 40)")
    parser.add_argument("--scheme", action="append", help="only this one, without the ceiling and the programs")
    parser.add_argument("--fifo", action="store_true", help="race with real-time priority, as root on a busy machine")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    program = build()
    wanted = [Scheme.parse(name) for name in arguments.scheme or []]
    races = [(scheme, pin) for scheme, pin in RACES if not wanted or scheme in wanted]
    said: dict[str, object] = {}
    with devkvm() as fd, scheduled(fifo=arguments.fifo):
        rows = [race(fd, program, scheme, pin, arguments.rounds, arguments.count) for scheme, pin in races]
        said["races_us"] = rows
        missed = [f"{row['scheme']} ({row['pin']})" for row in rows if max(row["ratio"].values()) > MOST_RATIO]
        if not wanted:
            ceiling = race_ceiling(fd, program, max(arguments.rounds // 2, 2), 250)
            said["ceiling_per_s"] = ceiling
            missed += ["the ceiling"] if ceiling["share"] < LEAST_CEILING else []
    if not wanted:
        said["programs"] = found = programs()
        missed += ["selftest's time"] if found["selftest_s"] > MOST_SELFTEST_S else []
        missed += ["the memory of bench"] if found["bench_mib"] > MOST_MIB else []
    if arguments.json:
        print(json.dumps({**said, "missed": missed}))
    else:
        show(said)
        print("MISSED: " + ", ".join(missed) if missed else "all within what is promised")
    return 1 if missed else 0


def show(said: dict[str, Any]) -> None:
    """The figures as a table."""
    print(f"{'scheme':<12} {'pin':<7} {'C p50':>8} {'p99':>8}   {'ours p50':>8} {'p99':>8}   p50 / C  p99 / C")
    for row in said["races_us"]:
        ours, theirs, ratio = row["python"], row["c"], row["ratio"]
        print(
            f"{row['scheme']:<12} {row['pin']:<7} {theirs['p50']:8.1f} {theirs['p99']:8.1f}   "
            f"{ours['p50']:8.1f} {ours['p99']:8.1f}   {ratio['p50']:7.2f}  {ratio['p99']:7.2f}"
        )
    if "ceiling_per_s" in said:
        found = said["ceiling_per_s"]
        print(f"\nceiling: C {found['c']:.0f} a second, ours {found['python']:.0f}, {found['share']:.3f} of it")
        print("selftest, the whole program: {selftest_s:.2f} s; bench: {bench_mib:.0f} MiB".format(**said["programs"]))


def programs() -> dict[str, float]:
    """Seconds of ``vfio-intx selftest``, the interpreter's start included, and the most MiB that ``bench`` takes."""
    began = time.monotonic()
    _run("selftest")
    seconds = time.monotonic() - began
    return {"selftest_s": seconds, "bench_mib": _run("bench", "--count", "2000") / 1024}


def _run(*words: str) -> int:
    """Run a verb; the most KiB that were resident."""
    child = subprocess.Popen([sys.executable, "-m", "vfio_intx", *words], stdout=subprocess.DEVNULL)
    _, _, used = os.wait4(child.pid, 0)
    child.returncode = 0
    return used.ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
