"""``tools/bench watch``: what ``status`` and ``status --watch`` cost for many lines, on a fake host.

    tools/bench watch [--lines N] [--vms N] [--seconds S]

The host is a folder, its VMs are fake QEMUs behind real monitor sockets in a process of their own. ``status`` is timed
as a whole process, Python's start included, less the interval over which it watches the counters; what it and the fake
VMs took of a CPU is told beside, for machines that are not quiet. ``status --watch`` runs on a terminal of its own at
1 Hz; its CPU time is taken after its start.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from timing import with_byte_code

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tests.fakes.qemu_vm import FakeVm

MOST_STATUS_MS, MOST_SHARE = 200.0, 0.03
INTERVAL_S = 0.02
_HZ = os.sysconf("SC_CLK_TCK")


def build(folder: Path, lines: int, vms: int) -> list[FakeVm]:
    """A host with *lines* functions on lines of their own, dealt out to VMs that listen below *folder*."""
    from tests.fakes.qemu_vm import FakeVm
    from tests.fakes.tree import FakeFunction, FakeTree
    from vfio_intx.names import Bdf

    tree = FakeTree(folder / "host")
    machines = [FakeVm() for _ in range(vms)]
    table = {}
    for number in range(lines):
        bdf = str(Bdf(0, 1 + number // 32, number % 32, 0))
        tree.add(FakeFunction(bdf, irq=30 + number, driver="vfio-pci", group=number))
        table[30 + number] = (1000, "IR-IO-APIC 21-fasteoi", f"vfio-intx({bdf})")
        device = {"driver": "vfio-pci", "host": bdf, "x-no-kvm-intx": False, "guest": "listens"}
        machines[number % vms].devices[f"nic{number}"] = device
    tree.interrupts(table)
    for number in range(vms):
        pid = 100 + number
        groups = [f"/dev/vfio/{line}" for line in range(number, lines, vms)]
        tree.process(pid, "qemu-system-x86", (*groups, "anon_inode:[vfio-device]", "anon_inode:kvm-vm"))
        words = [
            "qemu-system-x86_64",
            "-name",
            f"vm{number}",
            "-machine",
            "pc",
            "-qmp",
            f"unix:{folder}/{number},server=on",
        ]
        tree.write(f"proc/{pid}/cmdline", "\0".join(words) + "\0")
        tree.write(f"proc/{pid}/stat", f"{pid} (q) S " + " ".join(["1"] * 18) + " 500 0 0\n")
        tree.link(f"proc/{pid}/exe", "usr/bin/qemu-system-x86_64")
        tree.link(f"proc/{pid}/root", ".")
    return machines


@contextlib.contextmanager
def served(folder: Path, machines: list[FakeVm]) -> Iterator[int]:
    """The monitors, in a child so that their work is not ours; its pid."""
    from tests.fakes import qmp_server as fake

    child = os.fork()
    if not child:
        with contextlib.ExitStack() as stack:
            for number, machine in enumerate(machines):
                stack.enter_context(fake.serving(folder / str(number), machine.script))
            threading.Event().wait()
        os._exit(0)
    try:
        while not all((folder / str(number)).exists() for number in range(len(machines))):
            time.sleep(0.01)
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


#: The program ``vfio-intx`` with another root for ``status``, and nothing else in the process.
CHILD = """
import functools, sys
import vfio_intx.cli.status as verb
from vfio_intx.cli.main import console_entry
from vfio_intx.host.root import HostRoot
verb.run = functools.partial(verb.run, root=HostRoot(sys.argv.pop(1)))
sys.argv[1:1] = ["status"]
console_entry()
"""


def verb(host: Path, *words: str) -> list[str]:
    """``status`` on the fake host, as a process of its own."""
    return [sys.executable, "-c", CHILD, str(host), *words]


def time_status(host: Path, lines: int) -> tuple[float, float]:
    """Milliseconds of one ``status``, less its interval, and of CPU time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    argv = verb(host, "--json", "--interval", str(INTERVAL_S))
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=with_byte_code())
    took = time.perf_counter() - began - INTERVAL_S
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.stdout.count('"uptake"') + done.stdout.count('"guest"') < lines or '"trouble": []' not in done.stdout:
        sys.exit(f"tools/bench watch: status did not tell of all lines:\n{done.stdout[:2000]}")
    return took * 1000, cpu * 1000


def time_watch(host: Path, seconds: float) -> float:
    """The share of a core that ``status --watch`` takes on a terminal."""
    child, terminal = pty.fork()
    if not child:
        os.environ.update(TERM="xterm", COLUMNS="140", LINES="80")
        argv = verb(host, "--watch")
        os.execv(argv[0], argv)
    drawn = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 65536):
                drawn.extend(chunk)

    threading.Thread(target=read, daemon=True).start()
    time.sleep(4.0)
    before, began = cpu_s(child), time.perf_counter()
    time.sleep(seconds)
    share = (cpu_s(child) - before) / (time.perf_counter() - began)
    os.write(terminal, b"q")
    _, status = os.waitpid(child, 0)
    if status or (b"vfio" not in drawn and b"sorted by" not in drawn):
        sys.exit(f"tools/bench watch: status --watch ended with {status}: {bytes(drawn[-2000:])!r}")
    return share


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _HZ


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=64)
    parser.add_argument("--vms", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long --watch is measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(folder, build(folder, arguments.lines, arguments.vms)) as fakes:
            time_status(folder / "host", arguments.lines)  # which compiles what has not been, and is not counted
            before = cpu_s(fakes)
            times = [time_status(folder / "host", arguments.lines) for _ in range(arguments.rounds)]
            fakes_ms = (cpu_s(fakes) - before) * 1000 / arguments.rounds
            share = time_watch(folder / "host", arguments.seconds)
    status_ms, cpu_ms = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{arguments.lines} lines of {arguments.vms} VMs: status {status_ms:.0f} ms besides its interval")
    print(f"CPU time: {cpu_ms:.0f} ms, of the fake VMs {fakes_ms:.0f} ms")
    print(f"status --watch at 1 Hz: {share:.2%} of a core over {arguments.seconds:g} s")
    good = status_ms <= MOST_STATUS_MS and share <= MOST_SHARE
    print(
        f"targets ({MOST_STATUS_MS:g} ms, {MOST_SHARE:.0%} of a core): {'met' if good else 'MISSED'}", file=sys.stderr
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
