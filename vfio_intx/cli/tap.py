"""``vfio-intx tap BDF``: stand in the EOI path of a live line, count exactly, unmask by hand, and step out again."""

from __future__ import annotations

import argparse

from vfio_intx.cli.vm import (
    add_timeout_argument,
    add_vm_arguments,
    open_vm,
    parse_seconds,
    treat_termination_as_interrupt,
)
from vfio_intx.host.root import HostRoot

EPILOG = """\
needs root and a QEMU with the series of qemu-patches/
ends after --seconds or with Ctrl-C, and the line goes on by irqfd

examples:
  vfio-intx tap 05:00.0 --qmp /run/vm.qmp --dry-run
  vfio-intx tap 05:00.0 --qmp /run/vm.qmp --seconds 10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("bdf", metavar="BDF", help="the host's PCI function, in use by a VM of a patched QEMU")
    add_vm_arguments(parser)
    parser.add_argument("--seconds", metavar="S", type=parse_seconds, help="stay for so long (default: until Ctrl-C)")
    add_timeout_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="check that it is possible, change nothing")
    parser.add_argument("--json", action="store_true", help="print vfio-intx/tap/1 for programs")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Enter, serve, leave; 0 also where QEMU ended it."""
    import sys

    from vfio_intx.cli.output import print_json
    from vfio_intx.names import Bdf
    from vfio_intx.wiring.handover import require_handover
    from vfio_intx.wiring.ready import require_root
    from vfio_intx.wiring.tap import open_tap

    bdf = Bdf.parse(arguments.bdf)
    require_root()
    treat_termination_as_interrupt()
    root = root or HostRoot()
    with open_vm(arguments, root) as monitor:
        if arguments.dry_run:
            state = require_handover(monitor, bdf)
            print(f"would set x-intx-eventfds of {state.path} to eventfds of ours, and unmask {bdf} after each EOI")
            return 0
        with open_tap(monitor, bdf, root) as tap:
            print(f"tap: in the path of {bdf}", file=sys.stderr, flush=True)
            try:
                ended = tap.serve(arguments.seconds)
            except KeyboardInterrupt:
                ended = "stopped"
    if arguments.json:
        print_json("tap/1", {"device": str(bdf), "ended": ended, **tap.tally.as_json()})
    else:
        print("\n".join([f"{bdf}: {ended}", *tap.tally.in_words()]))
    return 0
