"""What Python adds to the kernel's path: the micro VM's loops against the same loops in C, in turns, in one run.

    tools/bench kvm [--count N] [--rounds N] [--json]

For each scheme both programs have their machine up all the time, and take turns of some hundred interrupts; the
percentiles are those of all turns together. The ceiling is run in turns as well. A ratio of 1.00 is C.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

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
#: What is promised: round trips within 1.2 times C's, the ceiling within 2 per cent of C's.
MOST_RATIO, LEAST_CEILING = 1.2, 0.98


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


def percentile(trips: list[int], share: float) -> float:
    """The round trip in microseconds that *share* of the sorted *trips* (in ns) do not exceed."""
    return trips[min(len(trips) - 1, int(len(trips) * share))] / 1000


def race(fd: int, program: Path, scheme: Scheme, pin: Pin, rounds: int, count: int) -> dict[str, object]:
    """Both programs in turns, the first turn alternating; percentiles of each and their ratios."""
    with ExitStack() as stack:
        ours = Contestant(fd, scheme, pin)
        stack.callback(ours.close)
        theirs = InC(program, scheme.value, pin)
        stack.callback(theirs.close)
        theirs.ask("race 10", 10)
        trips: dict[str, list[int]] = {"python": [], "c": []}
        durations = array("Q", bytes(8 * count))

        def python() -> None:
            ours.race(count, durations)
            trips["python"] += durations

        def c() -> None:
            trips["c"] += theirs.ask(f"race {count}", count)

        for turn in range(rounds):
            for side in (python, c) if turn % 2 else (c, python):
                side()
    row: dict[str, object] = {"scheme": scheme.value, "pin": pin.label}
    for side_name, found in trips.items():
        done = sorted(trip for trip in found if trip)
        row[side_name] = {"p50": percentile(done, 0.5), "p99": percentile(done, 0.99), "lost": len(found) - len(done)}
    return row


def race_ceiling(fd: int, program: Path, rounds: int, ms: int) -> dict[str, float]:
    """The ceiling in turns: interrupts a second of either side over all turns."""
    with ExitStack() as stack:
        ours = Ceiling(fd)
        stack.callback(ours.close)
        theirs = InC(program, "ceiling", Pin.IOAPIC)
        stack.callback(theirs.close)
        interrupts = nanoseconds = 0
        for turn in range(rounds):
            if turn % 2:
                ours.run(ms / 1000)
            answer = theirs.ask(f"run {ms}", 2)
            interrupts, nanoseconds = interrupts + answer[0], nanoseconds + answer[1]
            if not turn % 2:
                ours.run(ms / 1000)
        return {"python": ours.figures.rate, "c": interrupts / nanoseconds * 1e9}


def main() -> int:
    """Run everything; 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(prog="tools/bench kvm", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=500, help="interrupts in a turn (default 500)")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each side (default 20)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    program = build()
    with devkvm() as fd:
        rows = [race(fd, program, scheme, pin, arguments.rounds, arguments.count) for scheme, pin in RACES]
        ceiling = race_ceiling(fd, program, max(arguments.rounds, 2), 250)
    selftest, memory = programs()
    kept = True
    if not arguments.json:
        print(f"{'scheme':<12} {'pin':<7} {'C p50':>8} {'p99':>8}   {'ours p50':>8} {'p99':>8}   p50 x C  p99 x C")
    for row in rows:
        ours, theirs = row["python"], row["c"]
        assert isinstance(ours, dict)
        assert isinstance(theirs, dict)
        ratios = [ours[rank] / theirs[rank] for rank in ("p50", "p99")]
        row["ratio"] = dict(zip(("p50", "p99"), ratios, strict=True))
        kept = kept and (row["scheme"] != "irqfd" or max(ratios) <= MOST_RATIO)
        if not arguments.json:
            print(
                f"{row['scheme']:<12} {row['pin']:<7} {theirs['p50']:8.1f} {theirs['p99']:8.1f}   "
                f"{ours['p50']:8.1f} {ours['p99']:8.1f}   {ratios[0]:7.2f}  {ratios[1]:7.2f}"
            )
    share = ceiling["python"] / ceiling["c"]
    kept = kept and share >= LEAST_CEILING
    if arguments.json:
        print(
            json.dumps(
                {
                    "races_us": rows,
                    "ceiling_per_s": {**ceiling, "share": share},
                    "selftest_s": selftest,
                    "bench_mib": memory,
                }
            )
        )
    else:
        print(f"\nceiling: C {ceiling['c']:.0f} a second, ours {ceiling['python']:.0f}, that is {share:.3f} of it")
        print(f"selftest, the whole program: {selftest:.2f} s; bench: {memory:.0f} MiB at most")
    return 0 if kept else 1


def programs() -> tuple[float, float]:
    """Seconds of ``vfio-intx selftest``, the interpreter's start included, and the most MiB that ``bench`` takes."""
    began = time.monotonic()
    _run("selftest")
    seconds = time.monotonic() - began
    _run("bench", "--count", "2000")
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def _run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "vfio_intx", *words], stdout=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    sys.exit(main())
