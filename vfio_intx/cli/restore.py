"""``vfio-intx restore BDF``: bring a function back to its first driver, also after a crash of ours."""

from __future__ import annotations

import argparse
import contextlib

from vfio_intx.cli.changes import add_common, print_outcomes, print_script, records_of, state_directory
from vfio_intx.cli.vm import treat_termination_as_interrupt
from vfio_intx.errors import WorldError
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import LocalMachine, Machine
from vfio_intx.wiring.drivers import Plan, plan_restore, restore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_common(parser)


def run(arguments: argparse.Namespace, machine: Machine | None = None) -> int:
    """Restore, or print what restoring would write."""
    machine = machine or LocalMachine()
    bdf, directory = Bdf.parse(arguments.bdf), state_directory(arguments)
    if arguments.dry_run:
        change = plan_restore(machine, records_of(directory, [bdf]).get(bdf), bdf)
        return print_script(Plan((), (change,)).script())
    treat_termination_as_interrupt()
    outcome = restore(machine, directory, bdf)
    _sweep(machine)
    return print_outcomes([outcome], directory)


def _sweep(machine: Machine) -> None:
    """Remove the tracefs instances that a killed ``trace`` left, too: what the user wants back is the whole machine."""
    from vfio_intx.observe.tracefs import sweep

    with contextlib.suppress(WorldError):
        sweep(machine.root)
