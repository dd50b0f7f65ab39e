"""``vfio-intx unbind BDF``: take a function from vfio-pci and leave it without a driver."""

from __future__ import annotations

import argparse

from vfio_intx.cli.changes import add_common, print_outcomes, print_script, state_directory
from vfio_intx.cli.vm import treat_termination_as_interrupt
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import LocalMachine, Machine
from vfio_intx.wiring.drivers import Plan, plan_unbind, unbind
from vfio_intx.wiring.recovery import record_of

EPILOG = """\
needs root; vfio-intx restore still knows the first driver afterwards

examples:
  vfio-intx unbind 05:00.0 --dry-run
  vfio-intx unbind 05:00.0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_common(parser)


def run(arguments: argparse.Namespace, machine: Machine | None = None) -> int:
    """Unbind, or print what unbinding would write."""
    machine = machine or LocalMachine()
    bdf, directory = Bdf.parse(arguments.bdf), state_directory(arguments)
    if arguments.dry_run:
        change = plan_unbind(machine, record_of(directory, bdf), bdf)
        return print_script(Plan((), (change,)).script(), bdf)
    treat_termination_as_interrupt()
    return print_outcomes([unbind(machine, directory, bdf)], directory)
