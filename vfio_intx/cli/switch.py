"""``vfio-intx switch BDF SCHEME``: change the scheme of a live line, and prove what came out."""

from __future__ import annotations

import argparse

from vfio_intx.cli.vm import add_timeout_argument, add_vm_arguments, open_vm, parse_seconds
from vfio_intx.host.root import HostRoot

EPILOG = """\
needs root and a QEMU with the series of qemu-patches/; stock QEMU: detach, then attach --scheme

examples:
  vfio-intx switch 05:00.0 trap --qmp /run/vm.qmp --dry-run
  vfio-intx switch 05:00.0 irqfd --qmp /run/vm.qmp
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("bdf", metavar="BDF", help="the host's PCI function, in use by a VM")
    parser.add_argument("scheme", metavar="SCHEME", help="irqfd, ack-eventfd or trap")
    add_vm_arguments(parser)
    parser.add_argument(
        "--prove",
        metavar="S",
        type=parse_seconds,
        default=3.0,
        help="seconds to wait for an interrupt that proves the scheme (default 3)",
    )
    add_timeout_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="check, print the QMP command, change nothing")
    parser.add_argument("--json", action="store_true", help="print vfio-intx/switch/1 for programs")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Switch; 0 also where the scheme is not proven yet, because no interrupt has come."""
    from vfio_intx.chain.scheme import Scheme
    from vfio_intx.cli.output import print_json
    from vfio_intx.names import Bdf
    from vfio_intx.qemu.intx_state import SWITCHABLE
    from vfio_intx.wiring.ready import require_root
    from vfio_intx.wiring.switch import Request, plan, switch

    request = Request(Bdf.parse(arguments.bdf), Scheme.parse(arguments.scheme, offered=SWITCHABLE), arguments.prove)
    require_root()
    root = root or HostRoot()
    with open_vm(arguments, root) as monitor:
        if arguments.dry_run:
            planned = plan(request, monitor)
            if arguments.json:
                commands = [] if planned.command is None else [planned.command]
                print_json("switch-plan/1", {"device": str(request.bdf), "qmp": commands})
            else:
                print(planned.command or f"{request.bdf} runs {request.scheme.value} already: nothing to do")
            return 0
        done = switch(request, monitor, root)
    if arguments.json:
        print_json("switch/1", done.as_json())
    else:
        print("\n".join(done.in_words()))
    return 0
