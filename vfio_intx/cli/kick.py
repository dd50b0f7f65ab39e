"""``vfio-intx kick BDF``: reopen a line that is masked and has no one left to unmask it."""

from __future__ import annotations

import argparse

from vfio_intx.host.root import HostRoot

EPILOG = """\
needs root; harmless where the line is open already

examples:
  vfio-intx kick 05:00.0 --dry-run
  vfio-intx kick 05:00.0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("bdf", metavar="BDF", help="the host's PCI function, in a running VM")
    parser.add_argument("--dry-run", action="store_true", help="look at the line, and do not unmask it")
    parser.add_argument("--json", action="store_true", help="print vfio-intx/kick/1 for programs")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Kick; 0 where the kernel took the unmask, also if it was not needed."""
    from vfio_intx.cli.output import print_json
    from vfio_intx.names import Bdf
    from vfio_intx.wiring.kick import kick
    from vfio_intx.wiring.ready import require_root

    bdf = Bdf.parse(arguments.bdf)
    require_root()
    done = kick(root or HostRoot(), bdf, dry_run=arguments.dry_run)
    if arguments.json:
        print_json("kick/1", {**done.as_json(), "dry_run": arguments.dry_run})
        return 0
    if arguments.dry_run:
        print(f"would ask: VFIO_DEVICE_SET_IRQS (unmask) on the descriptor of {bdf} in process {done.pid}")
    else:
        print(f"{bdf}: {done.outcome}")
    for name, one in (("before", done.before), ("after", done.after)):
        print(
            f"  {name}: masked {_word(one.masked)}, asserting {_word(one.asserting)}, host interrupts {one.interrupts}"
        )
    return 0


def _word(flag: bool | None) -> str:
    return "unknown" if flag is None else "yes" if flag else "no"
