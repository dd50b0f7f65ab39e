"""What ``bind``, ``unbind`` and ``restore`` have in common: their options, and how they tell what became of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vfio_intx.errors import RefusedError
from vfio_intx.names import Bdf
from vfio_intx.wiring.drivers import Outcome
from vfio_intx.wiring.journal import Record, open_state, read_all, state_path


def add_common(parser: argparse.ArgumentParser, *, every: str = "") -> None:
    """The function, ``--dry-run`` and ``--state-dir``; *every* says which functions are meant where none is named."""
    words = "the PCI function, such as 0000:05:00.0"
    words += f" (default: {every})" if every else ""
    parser.add_argument("bdf", metavar="BDF", nargs="?" if every else None, help=words)
    parser.add_argument("--dry-run", action="store_true", help="print the exact writes and change nothing")
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help="where first drivers are recorded (else VFIO_INTX_STATE, else /var/lib/vfio-intx)",
    )


def records_of(directory: Path, bdfs: Sequence[Bdf]) -> Mapping[Bdf, Record]:
    """Our records of these functions, for the dry run of ``bind``: where there is no directory of ours, there are none.

    :raise BadRecord: for one that cannot be trusted.
    """
    if not directory.exists():
        return {}
    try:
        with open_state(directory) as state:
            return {bdf: record for bdf in bdfs if (record := state.read(bdf)) is not None}
    except RefusedError:
        return {}  # somebody else's: a dry run by a mere user, who cannot see the records


def state_directory(arguments: argparse.Namespace) -> Path:
    """The state directory that the arguments or the environment name."""
    return state_path(arguments.state_dir)


def print_script(script: Iterable[str], what: object) -> int:
    """Print what a dry run found for *what*; exit status 0."""
    lines = list(script)
    print("\n".join(lines) if lines else f"{what}: nothing to do")
    return 0


def print_outcomes(outcomes: Iterable[Outcome], directory: Path) -> int:
    """Print one line a function, and a note on every other that an earlier run left in the middle; exit status 0."""
    for outcome in outcomes:
        print_outcome(outcome)
    _tell_of_interrupted(directory)
    return 0


def print_outcome(outcome: Outcome) -> None:
    """Print what became of one function, on one line."""
    if outcome.writes:
        print(f"{outcome.bdf}: {outcome.was} -> {outcome.now}")
    else:
        print(f"{outcome.bdf}: already so: {outcome.now}")


def _tell_of_interrupted(directory: Path) -> None:
    if not directory.exists():
        return
    with open_state(directory) as state:
        records, bad = read_all(state)
    for record in records:
        if not record.settled:
            print(f"note: a change of {record.bdf} was interrupted; vfio-intx restore {record.bdf}", file=sys.stderr)
    for error in bad:
        print(f"note: {error}", file=sys.stderr)
