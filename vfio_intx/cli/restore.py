"""``vfio-intx restore [BDF]``: bring functions back to their first driver, also after a crash of ours."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from vfio_intx.cli.changes import add_common, print_outcome, print_outcomes, print_script, state_directory
from vfio_intx.cli.vm import treat_termination_as_interrupt
from vfio_intx.errors import MissingError, WorldError
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import LocalMachine, Machine
from vfio_intx.wiring.drivers import Plan, restore
from vfio_intx.wiring.plan import Change
from vfio_intx.wiring.recovery import naming_record, plan_restore_all, plan_restore_of, restore_all

EPILOG = """\
needs root; twice is as good as once, and after a crash in the middle it ends what was begun

examples:
  vfio-intx restore --dry-run
  vfio-intx restore
  vfio-intx restore 05:00.0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_common(parser, every="every one that this program has changed")


def run(arguments: argparse.Namespace, machine: Machine | None = None) -> int:
    """Restore, or print what restoring would write; without a BDF all functions that have a record."""
    machine, directory = machine or LocalMachine(), state_directory(arguments)
    if arguments.state_dir and not directory.exists():
        raise MissingError(
            f"there is no state directory {directory}; nothing was restored",
            hint="is its name right? without --state-dir it is that of VFIO_INTX_STATE, or /var/lib/vfio-intx",
        )
    if not arguments.dry_run:
        treat_termination_as_interrupt()
    if arguments.bdf is None:
        return _all(machine, directory, dry_run=arguments.dry_run)
    bdf = Bdf.parse(arguments.bdf)
    with naming_record(directory, bdf):
        if arguments.dry_run:
            return print_script(Plan((), (plan_restore_of(machine, directory, bdf),)).script(), bdf)
        outcome = restore(machine, directory, bdf)
    _sweep(machine)
    return print_outcomes([outcome], directory)


def _all(machine: Machine, directory: Path, *, dry_run: bool) -> int:
    from vfio_intx.cli.output import print_error

    status, bdf = 0, None
    for bdf, result in plan_restore_all(machine, directory) if dry_run else restore_all(machine, directory):
        if isinstance(result, WorldError):
            status = print_error(f"vfio-intx restore {bdf}", result)
        elif isinstance(result, Change):
            print_script(Plan((), (result,)).script(), bdf)
        else:
            print_outcome(result)
    if bdf is None:
        print(f"nothing to restore: {directory} has no record of a function")
    if not dry_run:
        _sweep(machine)
    return status


def _sweep(machine: Machine) -> None:
    """Remove the tracefs instances that a killed ``trace`` left, too: what the user wants back is the whole machine."""
    from vfio_intx.observe.tracefs import sweep

    with contextlib.suppress(WorldError):
        sweep(machine.root)
