"""``vfio-intx bind BDF``: give a function to vfio-pci."""

from __future__ import annotations

import argparse

from vfio_intx.cli.changes import add_common, print_outcomes, print_script, records_of, state_directory
from vfio_intx.cli.vm import treat_termination_as_interrupt
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import LocalMachine, Machine
from vfio_intx.wiring.drivers import bind, plan_bind, refuse_fixed, with_group

EPILOG = """\
needs root, but for --dry-run

examples:
  vfio-intx bind 05:00.0 --dry-run
  vfio-intx bind 05:00.0 --group
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_common(parser)
    parser.add_argument("--group", action="store_true", help="bind all of its IOMMU group that must go together")
    parser.add_argument("--force", action="store_true", help="bind it even where that looks useless or unwise")


def run(arguments: argparse.Namespace, machine: Machine | None = None) -> int:
    """Bind, or print what binding would write."""
    machine = machine or LocalMachine()
    bdf, directory = Bdf.parse(arguments.bdf), state_directory(arguments)
    bdfs = with_group(take_snapshot(machine.root), bdf) if arguments.group else (bdf,)
    if arguments.dry_run:
        plan = plan_bind(take_snapshot(machine.root), bdfs, records_of(directory, bdfs), force=arguments.force)
        refuse_fixed(machine.root, plan)
        return print_script(plan.script(), bdf)
    treat_termination_as_interrupt()
    return print_outcomes(bind(machine, directory, bdfs, force=arguments.force), directory)
