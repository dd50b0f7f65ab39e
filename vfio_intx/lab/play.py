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
from vfio_intx.errors import KernelError, LabLost, VfioIntxError, WorldError
from vfio_intx.lab import kernels
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
    """A scenario that has run.

    :ivar error: what it ended with; None exactly if it has a result.
    :ivar kept: the folder left behind, if any.
    :ivar not_kept: why that is not the folder asked for.
    """

    result: dict[str, object]
    error: VfioIntxError | None
    kept: Path | None
    not_kept: WorldError | None = None


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

    The results folder is removed if all went well, unless *keep* names a place to move it to. Where a *keep* was named,
    it is filled however this ends.

    :raise UsageError: if there is no such scenario or kernel. :raise MissingError: if this machine lacks something.
    :raise KernelError: *keep* cannot be a folder. Nothing was booted.
    """
    chosen = scenarios.find(name)
    spec = chosen.SPEC if kernel is None else replace(chosen.SPEC, kernel=kernel)
    kernels.check(spec.kernel)
    if keep is not None:
        _make_folder(keep)
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
        if keep is None or _moved(results_dir, keep) is None:
            shutil.rmtree(results_dir, ignore_errors=True)
        raise
    if keep is not None:
        not_kept = _moved(results_dir, keep)
        return Played(result, error, keep if not_kept is None else results_dir, not_kept)
    if error is None:
        shutil.rmtree(results_dir, ignore_errors=True)
    return Played(result, error, None if error is None else results_dir)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError("mkdir", str(path), error.errno or 0, hint="name a folder, or a place for one") from error


def _moved(results_dir: Path, keep: Path) -> WorldError | None:
    """Move everything but sockets to *keep*; why that failed, in which case *results_dir* stays."""
    try:
        shutil.copytree(results_dir, keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
    except shutil.Error as error:
        # A list: which file, where to, what the kernel said. Where one has no room, hardly any other has.
        [_, _, why], *_ = error.args[0]
        return WorldError(f"{results_dir} cannot be moved to {keep}: {why}", hint=f"all of it is in {results_dir}")
    except OSError as error:
        return KernelError("copy", str(error.filename or keep), error.errno or 0, hint=f"all of it is in {results_dir}")
    shutil.rmtree(results_dir, ignore_errors=True)
    return None


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
    """An interactive shell in an L1 with the cards of the scenario *name*; virtme-ng's own exit status."""
    chosen = scenarios.find(name)
    spec = chosen.SPEC if kernel is None else replace(chosen.SPEC, kernel=kernel)
    results_dir = results_folder()
    try:
        with scenarios.outside(chosen, results_dir):
            return shell_in_lab(spec, results_dir)
    finally:
        shutil.rmtree(results_dir, ignore_errors=True)
