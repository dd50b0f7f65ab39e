"""What came out of a lab: its status file and console are a stranger's words, checked before they are believed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.deadline import Deadline
from vfio_intx.errors import LabLost
from vfio_intx.lab.start import STARTED, STATUS
from vfio_intx.lab.supervise import Ended
from vfio_intx.names import escape

_STATUS = re.compile(rb"[0-9]{1,3}\n")
#: A dying kernel says no more than this.
_LAST_BYTES = 1 << 16
_DEATH = re.compile(r"Kernel panic|Oops: |BUG: |Out of memory|general protection fault")


@dataclass(frozen=True, slots=True)
class LabResult:
    """A lab that came up, ran its command and went down by itself.

    :ivar status: the command's exit status in L1, 0 to 255.
    :ivar boot_s: seconds from the start of QEMU to the command's first line; ``command_s`` from there to the status.
    """

    status: int
    results_dir: Path
    boot_s: float
    command_s: float


def read_status(results_dir: Path) -> int | None:
    """The command's exit status, or None if it has not ended (or the file is not what L1 writes)."""
    try:
        raw = (results_dir / STATUS).read_bytes()
    except FileNotFoundError:
        return None
    return int(raw) if _STATUS.fullmatch(raw) and int(raw) < 256 else None


def lost(results_dir: Path, ended: Ended, deadline: Deadline) -> LabLost:
    """The error for a lab that ended without a status: what happened, with the console's last words."""
    came_up = (results_dir / STARTED).exists()
    where = "its command was running" if came_up else "it came up"
    if ended.status is None:
        what = f"the lab was stopped after {deadline.budget_s:g} s (deadline: {deadline.name}), "
        what += "its command still running" if came_up else "before it came up"
    else:
        death = _first_death(results_dir)
        what = f"the lab machine died {'while' if came_up else 'before'} {where}"
        what += f": {escape(death)}" if death else ""
    error = LabLost(
        what, hint=f"its console is {results_dir}/console; run it again: this says nothing of the code in it"
    )
    for line in ended.tail[-8:]:
        error.add_note("console: " + escape(line))
    return error


def _first_death(results_dir: Path) -> str | None:
    """The console's first line of a dying kernel; what comes after it is consequence."""
    try:
        with (results_dir / "console").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LAST_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    return next((line.strip() for line in text.splitlines() if _DEATH.search(line)), None)
