"""Executing a plan: do each step, read back what came of it, and on failure undo what was done in exact reverse.

Writes go through a :class:`Machine`, the seam between this program and the kernel. The real one writes each file from a
child process with a deadline, because ``unbind`` and ``drivers_probe`` run a driver's code, which may never return.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, MissingError, VerifyError, WorldError
from vfio_intx.host.pci import PciIds, read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, escape
from vfio_intx.wiring.steps import Binding, Step, Write

#: A driver's probe or remove takes milliseconds; a card that resets slowly, some seconds.
WRITE_BUDGET_S = 10.0
#: For a killed program to be gone; it takes longer only where it hangs in the kernel.
_KILL_S = 1.0
_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


class StuckWrite(KernelError):
    """The kernel has not come back from a write within its deadline, and cannot be made to.

    The child that writes lives on: the change may still happen. Nothing is undone, because the kernel holds the
    device's lock and every further write would wait too.
    """


class Machine(Protocol):
    """What a plan is applied to. Reading goes through ``root``, changing through the two methods."""

    @property
    def root(self) -> HostRoot:
        """Where its files are."""

    def may_change(self) -> bool:
        """Whether this process has the right to bind drivers."""

    def write(self, write: Write, deadline: Deadline) -> None:
        """Write to sysfs. :raise KernelError: with the kernel's errno. :raise StuckWrite: when the deadline passes."""

    def load_module(self, name: str, deadline: Deadline) -> None:
        """Load a kernel module. :raise MissingError: if there is none of that name or it does not load."""


@dataclass(frozen=True, slots=True)
class LocalMachine:
    """The machine that this program runs on."""

    root: HostRoot = field(default_factory=HostRoot)

    def may_change(self) -> bool:
        """Whether we are root."""
        return os.geteuid() == 0

    def write(self, write: Write, deadline: Deadline) -> None:
        """Write to a file of sysfs from a child process; see :meth:`Machine.write`."""
        try:
            status = _in_child(lambda: _write_once(self.root.at(write.path.lstrip("/")), write.text), deadline)
        except OSError as error:
            raise KernelError("fork", f"a writer of {write.path}", error.errno or 0) from error
        if status is None:
            raise StuckWrite(
                "write",
                write.path,
                errno.ETIMEDOUT,
                hint="a driver hangs in the kernel; see dmesg. When it has let go, run: vfio-intx restore",
            )
        if status:
            raise KernelError("write", write.path, status)

    def load_module(self, name: str, deadline: Deadline) -> None:
        """Run ``modprobe``; see :meth:`Machine.load_module`."""
        try:
            status, said = _run_to_its_end(["modprobe", name], deadline)
        except FileNotFoundError as error:
            raise MissingError("there is no modprobe to load a module with", hint="apt install kmod") from error
        except OSError as error:
            raise KernelError("exec", "modprobe", error.errno or 0) from error
        except subprocess.TimeoutExpired as error:
            raise MissingError(
                f"modprobe {name} did not end within {deadline.budget_s:g} s", hint="see dmesg"
            ) from error
        if status:
            said = escape(said.strip()[:300])
            raise MissingError(
                f"the kernel module {name} cannot be loaded: {said}",
                hint="install this kernel's full set of modules; cloud kernels have no vfio",
            )


def _write_once(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.write(fd, f"{text}\n".encode())


def _in_child(action: Callable[[], None], deadline: Deadline) -> int | None:
    """Run *action* in a forked child: 0, the errno that it failed with, or None if the deadline passed before it ended.

    The child does one system call or two and leaves by ``_exit``; signals stay blocked in it, so that Ctrl-C cannot
    raise an exception there.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        child = os.fork()
        if child == 0:
            status = 255
            try:
                action()
                status = 0
            except OSError as error:
                status = error.errno or 255
            finally:
                os._exit(status)
        return _reap(child, deadline)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reap(child: int, deadline: Deadline) -> int | None:
    """The child's exit status. Nothing is opened for it: a process that has no descriptor left must still undo."""
    ended: list[int] = []

    def reaped() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        ended.extend([os.waitstatus_to_exitcode(status)] if pid else [])
        return bool(pid)

    return ended[0] if deadline.poll(reaped, first_s=0.0002, most_s=0.02) else None


def _run_to_its_end(argv: list[str], deadline: Deadline) -> tuple[int, str]:
    """Exit status and stderr of a program. One that hangs in the kernel outlives its kill, and is not waited for.

    :raise TimeoutExpired: and whatever else ends the wait; the program has been killed then.
    """
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        _, said = process.communicate(timeout=deadline.left())
    except BaseException:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_S)
        raise
    finally:
        if process.stderr is not None:
            process.stderr.close()
    return process.returncode, said


def read_binding(root: HostRoot, bdf: Bdf, ids: PciIds | None = None) -> Binding:
    """Which driver the function has now.

    :param ids: what the function at that address must be; another card there is never touched.
    :raise MissingError: if it is gone, or another card sits there. :raise WorldError: if it cannot be read.
    """
    function = read_function(root, bdf)
    if function is None:
        raise MissingError(f"the PCI function {bdf} is gone", hint="lspci -D lists those that are there")
    if ids is not None and function.ids.value != ids:
        raise MissingError(f"another card sits at {bdf} now: {function.ids.value}, not {ids}; it was left alone")
    for fact in (function.driver, function.override):
        if fact.value is None:
            raise WorldError(f"{fact.source} cannot be read: {fact.error}")
    return Binding(function.driver.get(""), function.override.get(""))


def apply(machine: Machine, steps: Iterable[Step], ids: dict[Bdf, PciIds]) -> None:
    """Execute *steps* in order. A step that already holds is skipped.

    On failure, or Ctrl-C, every step that was begun is undone in reverse and the error raised again, with a note for
    each undo that failed.

    :param ids: what each function must be, checked before every step.
    :raise VerifyError: if the kernel reported success and the binding read back is not the wanted one.
    """
    begun: list[Step] = []
    try:
        for step in steps:
            if read_binding(machine.root, step.bdf, ids.get(step.bdf)) == step.after:
                continue
            begun.append(step)
            _do(machine, step)
    except StuckWrite:
        raise
    except BaseException as error:
        _undo(machine, reversed(begun), ids, error)
        raise


def _do(machine: Machine, step: Step) -> None:
    for write in step.do:
        machine.write(write, Deadline.after(f"{step.purpose} ({step.bdf})", WRITE_BUDGET_S))
    seen = read_binding(machine.root, step.bdf)
    if seen != step.after:
        raise VerifyError(
            f"could not {step.purpose}: the kernel reported no error, but {step.bdf} has {seen}, not {step.after}",
            hint="dmesg | tail says what the driver found; is the driver's module loaded?",
        )


def _undo(machine: Machine, steps: Iterable[Step], ids: dict[Bdf, PciIds], cause: BaseException) -> None:
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for step in steps:
            try:
                _undo_step(machine, step, ids)
            except WorldError as error:
                cause.add_note(f"undoing it failed as well: could not bring back {step.before} on {step.bdf}: {error}")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def _undo_step(machine: Machine, step: Step, ids: dict[Bdf, PciIds]) -> None:
    if read_binding(machine.root, step.bdf, ids.get(step.bdf)) == step.before:
        return
    for write in step.undo:
        machine.write(write, Deadline.after(f"undo: {step.purpose} ({step.bdf})", WRITE_BUDGET_S))
    seen = read_binding(machine.root, step.bdf)
    if seen != step.before:
        raise VerifyError(f"{step.bdf} has {seen}")
