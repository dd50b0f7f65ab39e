"""Boot a lab, run one command in it, hand back its status: the one way in for tests, scenarios and benchmarks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import vfio_intx
from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, LabLost, MissingError
from vfio_intx.lab import autopsy, kernels
from vfio_intx.lab.argv import Places, vng_argv
from vfio_intx.lab.build_qemu import require_built
from vfio_intx.lab.initramfs import initramfs_for
from vfio_intx.lab.nudge import nudged
from vfio_intx.lab.outcome import LabResult, lost, read_status
from vfio_intx.lab.spec import LabSpec
from vfio_intx.lab.start import INNER, OUTER, OUTPUT, STARTED, Setting, inner_script, outer_script
from vfio_intx.lab.supervise import Follower, OnLine, supervise
from vfio_intx.names import escape

#: Set in L1, so that a program can tell; its value is the name of L1's kernel.
INSIDE = "VFIO_INTX_INSIDE_L1"

PROJECT = Path(vfio_intx.__file__).resolve().parents[1]

#: Variables of the caller that reach the command in L1, besides those given.
_PASSED_ON = ("VFIO_INTX_QEMU", "VFIO_INTX_DEBUG", "VFIO_INTX_SEED", "TERM", "NO_COLOR")


def missing_needs() -> list[str]:
    """What this machine lacks for a lab, each as a sentence part; empty if a lab can run."""
    needs = {
        "qemu-system-x86_64": "qemu-system-x86",
        "busybox": "busybox-static",
        "modprobe": "kmod",
        "depmod": "kmod",
        # virtme-ng asks it for the release of a kernel image.
        "file": "file",
    }
    lacking = [
        f"{program} (Debian package {package})"
        for program, package in needs.items()
        if shutil.which(program, path=kernels.search_path()) is None
    ]
    if not _vng().exists():
        lacking.append("virtme-ng (pip install -e '.[lab]')")
    return lacking


def require() -> None:
    """:raise MissingError: naming everything this machine lacks for a lab."""
    lacking = missing_needs()
    if lacking:
        raise MissingError("the lab needs " + ", ".join(lacking), hint="tools/setup installs it all")


def run_in_lab(
    spec: LabSpec,
    command: Sequence[str],
    results_dir: Path,
    deadline: Deadline,
    on_line: OnLine,
    environment: Mapping[str, str] | None = None,
) -> LabResult:
    """Boot *spec*, run *command* in L1 as root, wait for the lab to go down.

    The machine's files are L1's, read only under a memory overlay; only *results_dir* comes back. The command's working
    directory is the project, ``sys.executable`` is the same interpreter.

    :param results_dir: an empty folder; left in it: ``output`` (of the command), ``console``, what the command wrote.
    :param on_line: told each line of the command's output, and steps of the preparation, as they come.
    :raise MissingError: if this machine lacks something, before anything starts.
    :raise LabLost: if L1 dies, twice does not come up or outlives *deadline*; it is killed, its console kept, and what
        it was doing when the deadline passed lies in :data:`vfio_intx.lab.autopsy.REPORT`.
    """
    results_dir = results_dir.resolve()
    argv = _prepare(spec, command, results_dir, on_line, environment or {}, interactive=False)
    try:
        return _supervised(argv, results_dir, deadline, on_line)
    except LabLost as error:
        # On a loaded machine a kernel may fail to boot under emulation. Nothing of the command has run then.
        if (results_dir / STARTED).exists() or deadline.passed():
            raise
        on_line(f"the lab did not come up, booting it once more: {error}")
        return _supervised(argv, results_dir, deadline, on_line)


def shell_in_lab(spec: LabSpec, results_dir: Path) -> int:
    """Boot *spec* with an interactive shell on this terminal; virtme-ng's own exit status.

    The shell does not outlive its terminal, and neither does L1.
    """
    results_dir = results_dir.resolve()
    argv = _prepare(spec, ["bash", "--norc", "-i"], results_dir, lambda line: None, {}, interactive=True)
    return subprocess.run(argv, env=_environment(results_dir)).returncode


def _prepare(
    spec: LabSpec,
    command: Sequence[str],
    results_dir: Path,
    on_line: OnLine,
    environment: Mapping[str, str],
    *,
    interactive: bool,
) -> list[str]:
    """Fetch and build what is needed, write L1's scripts into *results_dir*; the command that boots it."""
    require()
    kernel = _fetched(spec.kernel, on_line)
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    inside = {INSIDE: spec.kernel, "VFIO_INTX_CACHE": str(kernels.cache_root()), **passed, **environment}
    folders = tuple(dict.fromkeys((PROJECT, Path(sys.prefix), kernels.cache_root())))
    programs = Path(sys.executable).parent if interactive else None
    setting = Setting(results_dir, PROJECT, folders, kernel.modules, inside, interactive, programs)
    (results_dir / INNER).write_text(inner_script(command, setting), "utf-8")
    outer = results_dir / OUTER
    outer.write_text(outer_script(setting), "utf-8")
    outer.chmod(0o755)
    qemu = require_built(spec.qemu).program if spec.qemu else None
    return vng_argv(spec, Places(_vng(), kernel.image, results_dir, qemu), outer, interactive=interactive)


def _fetched(name: str, on_line: OnLine) -> kernels.Kernel:
    """That kernel and its guest's initramfs, in the cache. :raise KernelError: no room there, or no right."""
    try:
        kernel = kernels.fetch(name, on_line)
        initramfs_for(kernel)
    except OSError as error:
        where = str(error.filename or kernels.cache_root())
        hint = "make room there, or name another folder with VFIO_INTX_CACHE"
        raise KernelError("write", where, error.errno or 0, hint=hint) from error
    return kernel


def _environment(results_dir: Path) -> dict[str, str]:
    """For virtme-ng, which is killed with L1 and then leaves what it has in TMPDIR."""
    path = f"{_vng().parent}:{kernels.search_path()}"
    return {**os.environ, "PATH": path, "TMPDIR": str(results_dir)}


def _supervised(argv: Sequence[str], results_dir: Path, deadline: Deadline, on_line: OnLine) -> LabResult:
    begun = time.monotonic()
    started_at: float | None = None
    status_at: float | None = None
    follower = Follower(results_dir / OUTPUT, on_line)

    def tick() -> None:
        nonlocal started_at, status_at
        if started_at is None and (results_dir / STARTED).exists():
            started_at = time.monotonic()
        if status_at is None and read_status(results_dir) is not None:
            status_at = time.monotonic()
        follower.look()

    findings: list[str] = []

    def look_at_it() -> None:
        findings.append(autopsy.perform(results_dir))

    console = results_dir / "console"
    try:
        with nudged(results_dir):
            ended = supervise(
                argv, console, deadline, tick, environment=_environment(results_dir), on_deadline=look_at_it
            )
    finally:
        follower.close()
    status = read_status(results_dir)
    if status is None or started_at is None or status_at is None:
        error = lost(results_dir, ended, deadline)
        for finding in findings:
            error.add_note(escape(finding))
        raise error
    return LabResult(status, results_dir, started_at - begun, status_at - started_at)


def _vng() -> Path:
    beside = Path(sys.executable).parent / "vng"
    found = shutil.which("vng")
    return beside if beside.exists() or found is None else Path(found)
