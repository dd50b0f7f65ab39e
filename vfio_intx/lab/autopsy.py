"""What a lab that did not end by itself was doing: its machine is looked at twice, a second apart, before it is killed.

A vCPU whose instruction pointer moves works (too slowly, or in circles); one that halts waits for an interrupt that
does not come; a QEMU that does not answer at all has hung itself. Which of these it was cannot be told afterwards.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vfio_intx.deadline import Deadline
from vfio_intx.errors import VfioIntxError
from vfio_intx.lab.channel import Monitor
from vfio_intx.lab.spec import socket_path

#: The report's name in the results folder.
REPORT = "autopsy"

#: The name of the socket of L1's monitor.
_SOCKET = "l1-monitor"
_QUESTIONS = ("info status", "info registers", "info pic", "info irq")
_APART_S = 1.0


def monitor_arguments(results_dir: Path) -> tuple[str, ...]:
    """QEMU's words for the monitor that the autopsy asks."""
    return ("-qmp", f"unix:{socket_path(results_dir, _SOCKET)},server=on,wait=off")


def perform(results_dir: Path) -> str:
    """Look at L1 twice and write what was seen to :data:`REPORT`; one line that sums it up. Never raises.

    It takes a few seconds at most, also if QEMU does not answer.
    """
    seen: list[str] = []
    try:
        # What QEMU says may hold half a surrogate pair, which no encoding takes.
        with (results_dir / REPORT).open("w", encoding="utf-8", errors="backslashreplace") as report:
            try:
                for when, wait_s in (("first", 0.0), ("second", _APART_S)):
                    time.sleep(wait_s)
                    with contextlib.closing(Monitor(socket_path(results_dir, _SOCKET), _soon())) as monitor:
                        _look(monitor, when, report, seen)
            except VfioIntxError as error:
                report.write(f"{error}\n")
                return f"L1's QEMU did not answer: {error}"
    except (OSError, ValueError) as error:
        return f"L1 could not be looked at: {error}"
    return f"L1's vCPU was at {' and a second later at '.join(seen)}"


def _look(monitor: Monitor, when: str, report: TextIO, seen: list[str]) -> None:
    for question in _QUESTIONS:
        answer = monitor.human(question, _soon())
        report.write(f"== {when} look: {question}\n{answer}\n")
        if question == "info registers":
            seen.append(next(_pointers(answer), "unknown"))


def _soon() -> Deadline:
    return Deadline.after("a look at L1", 15.0)


def _pointers(registers: str) -> Iterator[str]:
    """``RIP=ffffffff81e0d5a8 HLT=1``, from the output of ``info registers``."""
    words = registers.split()
    pointer = [word for word in words if word.startswith("RIP=")]
    halted = [word for word in words if word.startswith("HLT=")]
    if pointer:
        yield " ".join((pointer[0], *halted[:1]))
