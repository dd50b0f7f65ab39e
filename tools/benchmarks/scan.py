"""``tools/bench scan``: this machine beside other tools that list devices, and fake hosts of up to 4,096 functions.

A machine with a handful of functions shows above all what it costs to start Python, so that is timed alone, too.
The commands are also run on fake hosts of a real host's size, which lspci can be pointed at (driverctl and virsh
cannot, and virsh asks a daemon that has listed the functions long before).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import command, in_turns, table

from vfio_intx.cli import scan

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.fakes.tree import FakeFunction, FakeTree

#: The targets: not slower than this many times lspci -vvv, and this many seconds for 4,096 functions.
MOST_TIMES_LSPCI, MOST_SECONDS = 3.0, 1.0
SIZES = (256, 1024, 4096)
IRQS = 1024
#: Runs the command line on another root; there is no option for that, as no user has two hosts in one.
ON_ROOT = (
    "import functools, sys; from vfio_intx.cli import main, scan; from vfio_intx.host.root import HostRoot; "
    "scan.run = functools.partial(scan.run, root=HostRoot(sys.argv[1])); sys.exit(main.main(['scan']))"
)


#: Files of a function that lspci cannot do without and that a scan does not read.
FOR_LSPCI = {
    "vendor": "0x8086",
    "device": "0x100e",
    "class": "0x020000",
    "subsystem_vendor": "0x1af4",
    "subsystem_device": "0x1100",
    "resource": "\n".join(["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * 13),
    "numa_node": "-1",
}


def fake_host(path: Path, functions: int) -> FakeTree:
    """A host with that many functions on 1,024 lines; every fourth is driverless, groups are of two."""
    tree = FakeTree(path)
    for number in range(functions):
        bus, slot, function = number >> 8 & 0xFF, number >> 3 & 0x1F, number & 7
        driver = "" if number % 4 == 3 else f"driver{number % 16}"
        tree.add(
            FakeFunction(
                f"{number >> 16:04x}:{bus:02x}:{slot:02x}.{function}",
                driver=driver,
                pin=number % 4 + 1,
                irq=16 + number % IRQS,
                group=number // 2,
                msi=number % 3 == 0,
                extra=FOR_LSPCI,
            )
        )
    tree.interrupts({16 + n: (n, f"IO-APIC  {n}-fasteoi", f"driver{n % 16}") for n in range(IRQS)}, cpus=8)
    return tree


def scan_fake(tree: FakeTree) -> float:
    """Seconds for one whole scan of a fake host, table included, its output thrown away."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        scan.run(argparse.Namespace(bdf=[], json=False, snapshot=None), tree.root)
    return time.perf_counter() - start


def commands_on(tree: FakeTree, rounds: int) -> dict[str, float]:
    """Median seconds of both commands as a whole, each started anew, on a fake host.

    lspci has the easier task there: it does not follow the absolute links that drivers and groups are in a fake host.
    """
    lspci = ["lspci", "-A", "linux-sysfs", "-O", f"sysfs.path={tree.path}/sys/bus/pci", "-vvv"]
    actions = {
        "vfio-intx scan": command([sys.executable, "-c", ON_ROOT, str(tree.path)]),
        "lspci -vvv": command(lspci),
    }
    return in_turns(actions, rounds)


def rivals() -> dict[str, list[str]]:
    """The other tools that are installed here, by what they are compared for."""
    known = {
        "lspci -vvv": ["lspci", "-vvv"],
        "driverctl list-devices": ["driverctl", "list-devices"],
        "virsh nodedev-list": ["virsh", "nodedev-list", "--cap", "pci"],
    }
    known |= {
        "python3 -I -S -c pass": [sys.executable, "-I", "-S", "-c", "pass"],
        "python3 -c 'import argparse'": [sys.executable, "-c", "import argparse"],
    }
    return {name: argv for name, argv in known.items() if _works(argv)}


def _works(argv: list[str]) -> bool:
    """Whether a tool is there and answers: virsh without a daemon does not."""
    if shutil.which(argv[0]) is None:
        return False
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"not compared with {argv[0]}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return done.returncode == 0


def _times_lspci(medians: dict[str, float]) -> float:
    return medians["vfio-intx scan"] / medians["lspci -vvv"]


def main() -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    others = rivals()
    if "lspci -vvv" not in others:
        print("tools/bench scan needs lspci to compare with: apt install pciutils", file=sys.stderr)
        return 1
    program = str(Path(sys.executable).with_name("vfio-intx"))
    actions = {"vfio-intx scan": command([program, "scan"])} | {name: command(argv) for name, argv in others.items()}
    medians = in_turns(actions, arguments.rounds)
    print(table(medians, "lspci -vvv"))
    sizes, commands = {}, {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            tree = fake_host(Path(folder), size)
            sizes[size] = min(scan_fake(tree) for _ in range(3))
            commands[size] = commands_on(tree, 3)
        print(f"fake host, {size} functions: {sizes[size]:.2f} s, {sizes[size] / size * 1e6:.0f} us a function")
        print(table(commands[size], "lspci -vvv"))
    verdicts = {
        f"{MOST_TIMES_LSPCI:g} x lspci -vvv on this machine": _times_lspci(medians) <= MOST_TIMES_LSPCI,
        **{
            f"{MOST_TIMES_LSPCI:g} x lspci -vvv on {size} functions": _times_lspci(taken) <= MOST_TIMES_LSPCI
            for size, taken in commands.items()
        },
        f"{MOST_SECONDS:g} s for {SIZES[-1]} functions": sizes[SIZES[-1]] <= MOST_SECONDS,
    }
    for target, met in verdicts.items():
        print(f"target {target}: {'met' if met else 'MISSED'}")
    if arguments.json:
        seconds = {"commands_s": medians, "fake_host_s": sizes, "fake_host_commands_s": commands}
        arguments.json.write_text(json.dumps({"schema": "vfio-intx/bench-scan/1", **seconds}, indent=2) + "\n")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
