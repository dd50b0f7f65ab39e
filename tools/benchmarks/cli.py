"""``tools/bench cli``: how fast the program starts, beside Python with argparse."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from timing import command, in_turns, table

MOST_TIMES_ARGPARSE = 2.0
BASE = "python3 -c 'import argparse'"


def main() -> int:
    """Measure and print; 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    program = str(Path(sys.executable).with_name("vfio-intx"))
    actions = {
        BASE: command([sys.executable, "-c", "import argparse"]),
        "vfio-intx --version": command([program, "--version"]),
        "vfio-intx --help": command([program, "--help"]),
        "vfio-intx scan": command([program, "scan"]),
    }
    medians = in_turns(actions, arguments.rounds)
    print(table(medians, BASE))
    good = medians["vfio-intx --version"] <= MOST_TIMES_ARGPARSE * medians[BASE]
    print(f"target: --version within {MOST_TIMES_ARGPARSE:g} x {BASE}: {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
