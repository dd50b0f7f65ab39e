"""``tools/build-qemu``: a QEMU with our series, in the cache. Not a verb: it belongs to the source tree."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vfio_intx.errors import VfioIntxError
from vfio_intx.names import escape


def main() -> int:
    """Build (and check) as the command line says; the program's path is the last line on stdout."""
    from vfio_intx.cli.output import print_error
    from vfio_intx.lab import build_qemu

    parser = argparse.ArgumentParser("build-qemu", description="a small QEMU with our patches, kept in the cache")
    parser.add_argument("--base", default=build_qemu.DEFAULT_BASE, help=f"one of {', '.join(build_qemu.BASES)}")
    parser.add_argument("--stock", action="store_true", help="without the series")
    parser.add_argument("--source", type=Path, metavar="DIR", help="an unpacked source tree to take a copy of")
    parser.add_argument("--check", action="store_true", help="run QEMU's own checks on what the series changes")
    arguments = parser.parse_args()
    begun = time.monotonic()

    def say(words: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {escape(words)}", file=sys.stderr, flush=True)

    try:
        if arguments.check:
            return _check(arguments, say)
        built = build_qemu.build(arguments.base, say, stock=arguments.stock, source=arguments.source)
    except VfioIntxError as error:
        return print_error("build-qemu", error)
    print(built.program)
    return 0


def _check(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Run the checks on a fresh tree and keep what was built of it; 1 if one of them failed."""
    from vfio_intx.lab import build_qemu
    from vfio_intx.lab.check_qemu import run_checks

    failed = 0
    with build_qemu.tree(arguments.base, say, stock=arguments.stock, source=arguments.source) as ready:
        for check in run_checks(ready, say):
            failed += not check.passed
            print(f"{'ok' if check.passed else 'FAILED':<7} {escape(check.name)}: {check.words}", flush=True)
        built = build_qemu.keep(ready, stock=arguments.stock)
    print(built.program)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
