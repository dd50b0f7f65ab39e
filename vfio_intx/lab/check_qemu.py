"""QEMU's own checks, run on what our series changes: patch style, the QAPI schema, the qtests of devices and QMP."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.lab.build_qemu import Tree, compile_programs
from vfio_intx.lab.qemu_series import FIRMWARE

Say = Callable[[str], None]

_PROGRAM = "qemu-system-x86_64"
_BUDGET_S = 1200.0
_TAIL = 12


@dataclass(frozen=True, slots=True)
class Check:
    """One check's outcome. ``words`` is its own summary line, or the end of what it printed where it failed."""

    name: str
    passed: bool
    words: str


def run_checks(ready: Tree, say: Say) -> Iterator[Check]:
    """Every check, one after the other; the program and the test programs are compiled on the way.

    :raise WorldError: if something does not compile.
    """
    for patch in ready.applied:
        yield _checkpatch(ready, patch)
    yield _schema(ready)
    _lend_firmware(ready)
    compile_programs(ready, [_PROGRAM, *(f"tests/qtest/{name}" for name in ready.base.qtests)], say)
    yield _run(ready, "qapi-schema tests", ["meson", "test", "--no-rebuild", "--suite", "qapi-schema"], ready.objects)
    for name in ready.base.qtests:
        say(f"running {name}")
        yield _run(ready, name, [f"tests/qtest/{name}", "--tap"], ready.objects)


def _lend_firmware(ready: Tree) -> None:
    """A program that is run where it was built looks for every folder below its own ``qemu-bundle``."""
    for folder in FIRMWARE:
        link = ready.objects / "qemu-bundle" / folder.relative_to("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(folder)


def _checkpatch(ready: Tree, patch: Path) -> Check:
    # The series is unsigned on purpose: whoever sends it upstream signs it.
    argv = ["scripts/checkpatch.pl", "--no-signoff", str(patch)]
    return _run(ready, f"checkpatch {patch.name}", argv, ready.source)


def _schema(ready: Tree) -> Check:
    output = ready.objects / "schema-check"
    argv = ["python3", "scripts/qapi-gen.py", "-o", str(output), "-b", "qapi/qapi-schema.json"]
    return _run(ready, "QAPI schema", argv, ready.source)


def _run(ready: Tree, name: str, argv: list[str], cwd: Path) -> Check:
    environment = {**ready.environment, "QTEST_QEMU_BINARY": str(ready.objects / _PROGRAM)}
    try:
        done = subprocess.run(
            ["nice", *argv],
            cwd=cwd,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_BUDGET_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(name, False, f"it did not end within {_BUDGET_S:g} s")
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode != 0:
        return Check(name, False, "\n".join(lines[-_TAIL:]) or f"status {done.returncode}")
    return Check(name, True, _summary(lines))


def _summary(lines: list[str]) -> str:
    """What a passed check has to say for itself, in a few words."""
    passed = sum(line.startswith("ok ") for line in lines)
    if passed:
        skipped = sum(line.startswith("ok ") and "# SKIP" in line for line in lines)
        return f"{passed - skipped} passed, {skipped} skipped"
    for line in lines:
        if line.startswith(("total:", "Ok:")):
            return " ".join(line.split())
    return "passed"
