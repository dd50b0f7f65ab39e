"""``vfio-intx selftest``: whether this host's KVM can carry an INTx line, tried on ``/dev/kvm`` alone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all
from vfio_intx.cli.output import print_json
from vfio_intx.cli.text import screen_columns, wrapped
from vfio_intx.host.kernel import read_kernel
from vfio_intx.host.root import HostRoot
from vfio_intx.microvm.trials import Ground, Row, Verdict, is_usable, run_trials

EPILOG = """\
needs /dev/kvm (root, or its group), no device; takes a second or two

examples:
  vfio-intx selftest
  vfio-intx selftest --all
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print vfio-intx/selftest/1 instead of a table")
    parser.add_argument("--all", action="store_true", help="say of every row what it means for a passed-through card")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Try everything and print; 0 only if the host can carry a line."""
    root = root or HostRoot()
    began = time.monotonic()
    kvm_fd = kvm.open_kvm(root.at("dev/kvm"))
    try:
        rows = list(run_trials(Ground(kvm_fd, lambda: sum(1 for _ in root.at("proc/self/fd").iterdir()))))
    finally:
        close_all(kvm_fd)
    seconds = time.monotonic() - began
    usable = is_usable(rows)
    if arguments.json:
        print_json("selftest/1", payload(rows, root, seconds))
    else:
        _print_table(rows, seconds, everything=arguments.all)
        print(_conclusion(rows, usable))
    return 0 if usable else 1


def payload(rows: Sequence[Row], root: HostRoot, seconds: float) -> dict[str, object]:
    """What ``--json`` prints, without the schema."""
    kernel = read_kernel(root)
    return {
        "host": {"kernel": kernel.release.value, "kvm": list(kernel.kvm)},
        "usable": is_usable(list(rows)),
        "seconds": round(seconds, 3),
        "rows": [
            {
                "name": row.name,
                "expected": row.expected,
                "seen": row.seen,
                "verdict": row.verdict.value,
                "required": row.required,
                "meaning": row.meaning,
            }
            for row in rows
        ],
    }


def _print_table(rows: Sequence[Row], seconds: float, *, everything: bool) -> None:
    width, columns = max(len(row.name) for row in rows), screen_columns()
    for row in rows:
        head, words = f"{row.verdict.value:<4}  {row.name:<{width}}  ", [row.seen]
        if row.verdict is not Verdict.OK:
            words.append(f"expected: {row.expected}")
        if everything or row.verdict is not Verdict.OK:
            words.append(row.meaning)
        for text in words:
            print(head + wrapped(text, columns and columns - len(head)).replace("\n", "\n" + " " * len(head)))
            head = " " * len(head)
    print(f"\n{len(rows)} trials in {seconds:.2f} s")


def _conclusion(rows: Sequence[Row], usable: bool) -> str:
    if not usable:
        return "this host's KVM cannot carry an INTx line"
    warnings = sum(row.verdict is Verdict.WARN for row in rows)
    return "this host's KVM can carry an INTx line" + (
        f", with {warnings} warning{'s' * (warnings > 1)} above" if warnings else ""
    )
