"""``vfio-intx status``: the lines of the VMs that run now."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from vfio_intx.cli.vm import (
    add_timeout_argument,
    add_trace_argument,
    add_vm_arguments,
    names_vm,
    open_monitor,
    parse_seconds,
    witness_of,
)
from vfio_intx.host.root import HostRoot

if TYPE_CHECKING:
    from vfio_intx.observe.status import VmStatus

EPILOG = """\
needs root to see all; what could not be seen is reported as trouble, with exit status 0
--watch ends with q or Ctrl-C

examples:
  vfio-intx status
  vfio-intx status --watch --interval 2
  vfio-intx status --libvirt web1 --trace --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_vm_arguments(parser, required=False)
    parser.add_argument(
        "--interval",
        metavar="S",
        type=parse_seconds,
        default=1.0,
        help="seconds over which the counters are watched (default 1)",
    )
    add_trace_argument(parser)
    add_timeout_argument(parser)
    parser.add_argument("--watch", action="store_true", help="stay, and show the lines' states every --interval")
    parser.add_argument("--json", action="store_true", help="print vfio-intx/status/1 for programs")


def run(arguments: argparse.Namespace, root: HostRoot | None = None) -> int:
    """Print what runs; 0 also where some VM could not be asked, which the output says."""
    from vfio_intx.cli.output import print_json
    from vfio_intx.observe.status import gather, gather_one
    from vfio_intx.observe.watch import Watcher

    root = root or HostRoot()
    witness, interval_s = witness_of(arguments, root), arguments.interval
    watcher = Watcher(root)
    watcher.tick()
    vms: tuple[VmStatus, ...]
    if names_vm(arguments):
        vms = (gather_one(root, lambda: open_monitor(arguments, root), interval_s=interval_s, witness=witness),)
    else:
        vms = gather(root, interval_s=interval_s, budget_s=arguments.timeout, witness=witness)
    if arguments.watch:
        from vfio_intx.cli.watch import Roster, watch
        from vfio_intx.observe.traced import Traced

        traced = Traced(root) if arguments.trace else None
        again = (
            None if names_vm(arguments) else partial(gather, root, interval_s=interval_s, budget_s=arguments.timeout)
        )
        return watch(watcher, Roster(vms, again), interval_s=interval_s, as_json=arguments.json, traced=traced)
    states = watcher.tick()
    if arguments.json:
        print_json("status/1", {"vms": [vm.as_json() for vm in vms], "states": [row.as_json() for row in states]})
    else:
        print("\n".join([*_in_words(vms), *(f"{row.bdf}: {row.state}: {row.state.why}" for row in states)]))
    return 0


def _in_words(vms: tuple[VmStatus, ...]) -> list[str]:
    from vfio_intx.names import escape

    if not vms:
        return ["no QEMU process runs on this machine"]
    words: list[str] = []
    for vm in vms:
        who = " ".join(part for part in (escape(vm.name or ""), f"(pid {vm.pid})" if vm.pid else "") if part)
        words.append(f"VM {who}: {len(vm.lines) or 'no'} line{'' if len(vm.lines) == 1 else 's'}")
        words += [f"  {text}" for line in vm.lines for text in line.in_words()]
        words += [f"  trouble: {text}" for text in vm.trouble]
    return words
