"""Run one scenario from end to end: results folder, the outside part, L1, the result file."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from vfio_intx.deadline import Deadline
from vfio_intx.errors import LabLost, VfioIntxError, WorldError
from vfio_intx.lab import scenario as scenarios
from vfio_intx.lab.build_qemu import build
from vfio_intx.lab.inside import RESULT
from vfio_intx.lab.run import run_in_lab, shell_in_lab
from vfio_intx.names import escape


class _Written(msgspec.Struct):
    """The result file, as L1 writes it."""

    ok: bool
    result: dict[str, object] = {}
    error: str = ""
    hint: str | None = None
    notes: list[str] = []
    status: int = 1


@dataclass(frozen=True, slots=True)
class Played:
    """A scenario that has run. ``error`` is None exactly if it held; ``kept`` is the folder left behind, if any."""

    result: dict[str, object]
    error: VfioIntxError | None
    kept: Path | None


class Progress:
    """Lines of progress with the seconds since the start in front."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._begun = time.monotonic()

    def __call__(self, text: str) -> None:
        """Show one line, control bytes escaped."""
        self._write(f"[{time.monotonic() - self._begun:6.1f} s] {escape(text)}")


def results_folder() -> Path:
    """A new folder with a short path: unix sockets lie in it."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="vfio-intx-lab-", dir=base if len(base) < 40 else "/tmp"))


def play(name: str, kernel: str | None, words: tuple[str, ...], say: Progress, *, keep: Path | None = None) -> Played:
    """Run the scenario *name*, on *kernel* instead of its own if that is given.

    The results folder is removed if all went well, unless *keep* names a place to move it to.

    :raise UsageError: if there is no such scenario or kernel. :raise MissingError: if this machine lacks something.
    """
    chosen = scenarios.find(name)
    spec = chosen.SPEC if kernel is None else replace(chosen.SPEC, kernel=kernel)
    results_dir = results_folder()
    command = [sys.executable, "-m", "vfio_intx.lab.inside", name, str(results_dir), spec.kernel, *words]
    error: VfioIntxError | None = None
    result: dict[str, object] = {}
    try:
        if spec.qemu:
            build(spec.qemu, say)
        say(f"booting the lab (kernel {spec.kernel}) for {name}")
        with scenarios.outside(chosen, results_dir):
            deadline = Deadline.after(f"scenario {name}", scenarios.deadline_s(chosen))
            ran = run_in_lab(spec, command, results_dir, deadline, say)
        say(f"done: {ran.boot_s:.1f} s to boot, {ran.command_s:.1f} s for the scenario")
        result = _read(results_dir, ran.status)
        if isinstance(phases := result.get("phases_s"), dict):
            # What only the machine can time comes first.
            result["phases_s"] = {"lab boot": round(ran.boot_s, 3), **phases}
    except VfioIntxError as caught:
        error = caught
    except BaseException:
        shutil.rmtree(results_dir, ignore_errors=True)
        raise
    if error is None and keep is None:
        shutil.rmtree(results_dir, ignore_errors=True)
        return Played(result, None, None)
    if keep is not None:
        shutil.copytree(results_dir, keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
        shutil.rmtree(results_dir, ignore_errors=True)
    return Played(result, error, keep or results_dir)


def _read(results_dir: Path, status: int) -> dict[str, object]:
    """The scenario's result. :raise VfioIntxError: the one it ended with in L1."""
    try:
        written = msgspec.json.decode((results_dir / RESULT).read_bytes(), type=_Written)
    except (FileNotFoundError, msgspec.DecodeError) as error:
        raise WorldError(f"the scenario left no result (status {status}): {error}") from error
    if written.ok and status == 0:
        return written.result
    kind = LabLost if written.status == LabLost.exit_status else WorldError
    failure = kind(written.error or f"the scenario ended with status {status}", hint=written.hint)
    for note in written.notes:
        failure.add_note(note)
    raise failure


def shell(name: str, kernel: str | None) -> int:
    """An interactive shell in an L1 with the cards of the scenario *name*; its exit status is not known."""
    chosen = scenarios.find(name)
    spec = chosen.SPEC if kernel is None else replace(chosen.SPEC, kernel=kernel)
    results_dir = results_folder()
    try:
        with scenarios.outside(chosen, results_dir):
            return shell_in_lab(spec, results_dir)
    finally:
        shutil.rmtree(results_dir, ignore_errors=True)
