"""``vfio-intx attach BDF``: add a function to a running VM with a scheme, and verify what came out."""

from __future__ import annotations

import argparse

from vfio_intx.cli.vm import (
    add_timeout_argument,
    add_trace_argument,
    add_vm_arguments,
    open_vm,
    parse_seconds,
    treat_termination_as_interrupt,
    witness_of,
)
from vfio_intx.host.root import HostRoot

EPILOG = """\
needs root; the function must be on vfio-pci (vfio-intx bind)
exit status 0 also where no interrupt has come yet to prove the scheme, which the output says

examples:
  vfio-intx attach 05:00.0 --qmp /run/vm.qmp --dry-run
  vfio-intx attach 05:00.0 --libvirt web1
  vfio-intx attach 05:00.0 --proxmox 101 --scheme trap --prove 10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("bdf", metavar="BDF", help="the host's PCI function, bound to vfio-pci")
    add_vm_arguments(parser)
    parser.add_argument("--scheme", metavar="SCHEME", default="irqfd", help="irqfd (default) or trap")
    parser.add_argument("--direct", action="store_true", help="on eventfds made and checked here (patched QEMU)")
    parser.add_argument("--id", metavar="ID", help="QEMU's id for the device (default: made of the address)")
    parser.add_argument("--bus", metavar="BUS", help="the guest's bus (default: one that takes hot-plug)")
    parser.add_argument(
        "--prove",
        metavar="S",
        type=parse_seconds,
        default=3.0,
        help="seconds to wait for an interrupt that proves the scheme (default 3)",
    )
    add_trace_argument(parser)
    add_timeout_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="check, print the QMP command, change nothing")
    parser.add_argument("--json", action="store_true", help="print vfio-intx/attach/1 for programs")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Attach; 0 also where the scheme is not proven yet, because no interrupt has come."""
    from vfio_intx.chain.scheme import Scheme
    from vfio_intx.cli.output import print_json
    from vfio_intx.names import Bdf
    from vfio_intx.qemu.guestpci import parse_device_id
    from vfio_intx.wiring.attach import CHOICES, Request, attach, plan
    from vfio_intx.wiring.ready import require_root

    request = Request(
        bdf=Bdf.parse(arguments.bdf),
        scheme=Scheme.parse(arguments.scheme, offered=CHOICES),
        device_id=None if arguments.id is None else parse_device_id(arguments.id),
        bus=None if arguments.bus is None else parse_device_id(arguments.bus),
        timeout_s=arguments.timeout,
        prove_s=arguments.prove,
        direct=arguments.direct,
    )
    require_root()
    treat_termination_as_interrupt()
    root = root or HostRoot()
    with open_vm(arguments, root) as monitor:
        if arguments.dry_run:
            planned = plan(request, monitor, root)
            if arguments.json:
                print_json(
                    "attach-plan/1", {"device": str(request.bdf), "qmp": [planned.command], "notes": planned.notes}
                )
            else:
                print("\n".join([planned.command, *(f"note: {note}" for note in planned.notes)]))
            return 0
        line = attach(request, monitor, root, witness=witness_of(arguments, root))
    if arguments.json:
        print_json("attach/1", line.as_json())
    else:
        print("\n".join(line.in_words()))
    return 0
