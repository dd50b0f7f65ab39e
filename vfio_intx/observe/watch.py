"""Watching every line of this host with next to no load: one table, a few bytes of each device, nothing of QEMU.

A tick reads ``/proc/interrupts`` once and eight bytes of each device's config space. A device that runtime power
management has suspended is not read, because that would wake it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from vfio_intx.chain.fact import Fact
from vfio_intx.host.irq import read_interrupts, vfio_device
from vfio_intx.host.root import HostRoot, read_text
from vfio_intx.names import Bdf, HostIrq
from vfio_intx.observe.state import Look, State, advanced, judge

_COMMAND_DISINTX = 1 << 10
_STATUS_INTX = 1 << 3
_ALL_ONES = b"\xff" * 8


class Row(msgspec.Struct, frozen=True):
    """One line after a tick. ``ack_us`` is p50 and p99 from handler to acknowledge, where the line is traced.

    :ivar rate: interrupts a second since the tick before.
    :ivar last_s: seconds since an interrupt was last seen; None if none was since the watching began.
    """

    bdf: Bdf
    irq: HostIrq
    count: int
    rate: float
    last_s: float | None
    state: State
    ack_us: tuple[float, float] | None = None

    def as_json(self) -> dict[str, object]:
        """One entry of ``lines`` of ``vfio-intx/watch/1``."""
        return {
            "device": str(self.bdf),
            "host_irq": self.irq,
            "host_interrupts": self.count,
            "per_second": round(self.rate, 1),
            "last_interrupt_s": None if self.last_s is None else round(self.last_s, 1),
            "ack_us": None if self.ack_us is None else {"p50": self.ack_us[0], "p99": self.ack_us[1]},
            "state": str(self.state),
            "why": self.state.why,
        }


class _Line(msgspec.Struct):
    look: Look
    irq: HostIrq
    still_since: float
    last: float | None = None


class Watcher:
    """Looks at all lines at every :meth:`tick`; remembers for each since when it stands still."""

    def __init__(self, root: HostRoot, clock: Callable[[], float] = time.monotonic) -> None:
        self.root = root
        self.clock = clock
        self._lines: dict[Bdf, _Line] = {}

    def tick(self) -> list[Row]:
        """Every line that vfio handles now, by address. A line seen for the first time has no rate yet."""
        now = self.clock()
        rows = []
        found = {}
        for irq, line in (read_interrupts(self.root).value or {}).items():
            for action in line.actions:
                bdf = vfio_device(action)
                if bdf is not None:
                    look = self._look(bdf, irq, line.count, now)
                    found[bdf] = self._follow(bdf, irq, look)
                    rows.append(self._row(bdf, found[bdf], look))
        for bdf, kept in found.items():
            self._lines[bdf] = kept
        for gone in self._lines.keys() - found.keys():
            del self._lines[gone]
        return sorted(rows, key=lambda row: row.bdf)

    def _follow(self, bdf: Bdf, irq: HostIrq, look: Look) -> _Line:
        before = self._lines.get(bdf)
        if before is None or before.irq != irq:
            return _Line(look, irq, look.at)
        last = look.at if look.count != before.look.count else before.last
        still = look.at if advanced(before.look, look) else before.still_since
        return _Line(look, irq, still, last)

    def _row(self, bdf: Bdf, line: _Line, look: Look) -> Row:
        before = self._lines[bdf].look if bdf in self._lines else look
        seconds = look.at - before.at
        rate = (look.count - before.count) / seconds if seconds > 0 else 0.0
        state = judge(before, look, look.at - line.still_since)
        return Row(bdf, line.irq, look.count, rate, None if line.last is None else look.at - line.last, state)

    def _look(self, bdf: Bdf, irq: HostIrq, count: int, now: float) -> Look:
        registers = read_registers(self.root, bdf).value
        disabled = read_disabled(self.root, irq).value
        if registers is None:
            return Look(now, count, disabled=disabled)
        command, status = registers
        return Look(now, count, bool(status & _STATUS_INTX), bool(command & _COMMAND_DISINTX), disabled)


def read_registers(root: HostRoot, bdf: Bdf) -> Fact[tuple[int, int]]:
    """Command and Status of a function, unknown for one that is asleep, gone or dead."""
    place = root.function(bdf)
    source = f"/sys/bus/pci/devices/{bdf}/config"
    if read_text(f"{place}/power/runtime_status", root=root).get("active") == "suspended":
        return Fact.unknown(source, "the device is suspended, reading would wake it")
    try:
        fd = os.open(f"{place}/config", os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.read(fd, 8)
        finally:
            os.close(fd)
    except OSError as error:
        return Fact.unknown(source, error.strerror or str(error))
    if len(head) < 8 or head == _ALL_ONES:
        return Fact.unknown(source, "the device does not answer")
    return Fact.known((int.from_bytes(head[4:6], "little"), int.from_bytes(head[6:8], "little")), source)


def read_disabled(root: HostRoot, irq: HostIrq) -> Fact[bool]:
    """Whether the kernel gave the line up; only a kernel with CONFIG_GENERIC_IRQ_DEBUGFS tells, in debugfs."""
    text = read_text(root.file("sys/kernel/debug/irq/irqs", str(irq)), root=root)
    return text.map(lambda words: "IRQS_SPURIOUS_DISABLED" in words)
