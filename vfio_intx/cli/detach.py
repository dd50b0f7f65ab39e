"""``vfio-intx detach BDF``: take a function out of a running VM."""

from __future__ import annotations

import argparse

from vfio_intx.cli.vm import add_timeout_argument, add_vm_arguments, open_vm, treat_termination_as_interrupt
from vfio_intx.host.root import HostRoot

EPILOG = """\
needs root; the function stays on vfio-pci (vfio-intx restore BDF gives it back to the host)

examples:
  vfio-intx detach 05:00.0 --qmp /run/vm.qmp
  vfio-intx detach 05:00.0 --pid 4711 --timeout 60
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("bdf", metavar="BDF", help="the host's PCI function")
    add_vm_arguments(parser)
    add_timeout_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the QMP command, change nothing")
    parser.add_argument("--json", action="store_true", help="print vfio-intx/detach/1 for programs")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Detach; 0 also where the VM did not have the function."""
    from vfio_intx.cli.output import print_json
    from vfio_intx.names import Bdf
    from vfio_intx.wiring.detach import detach, detach_command
    from vfio_intx.wiring.ready import require_root

    bdf = Bdf.parse(arguments.bdf)
    require_root()
    treat_termination_as_interrupt()
    root = root or HostRoot()
    with open_vm(arguments, root) as monitor:
        if arguments.dry_run:
            print(detach_command(monitor, bdf) or f"{bdf} is not in this VM: nothing to do")
            return 0
        done = detach(monitor, root, bdf, timeout_s=arguments.timeout)
    if arguments.json:
        print_json("detach/1", done.as_json())
    else:
        print(done.in_words())
    return 0
