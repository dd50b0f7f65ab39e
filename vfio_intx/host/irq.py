"""The host's interrupt lines: who handles each, how often it fired, and whether the kernel has given up on it.

``/proc/interrupts`` is for people and changes with the configuration (``show_interrupts`` in kernel/irq/proc.c), so
it is parsed by its own header and with every column optional; the handlers' names come from
``/sys/kernel/irq/N/actions`` where that can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vfio_intx.chain.fact import Fact
from vfio_intx.host.root import HostRoot, read_text
from vfio_intx.names import Bdf, HostIrq, escape

#: CONFIG_NR_CPUS goes up to 8192 on x86; more columns than that are not CPUs.
_MOST_CPUS = 8192
_LONGEST_NAME = 200
#: Patterns are compiled when they are first used: each costs as much as reading ten files of sysfs.
_ROW = r"(?a)\s*([0-9]{1,7}):\s+(.*)"
_TRIGGER = r"(?a)(?:^|[-\s])(level|edge|fasteoi|Level|Edge)(?:\s|$)"
_SPURIOUS = r"(?a)count (\d{1,12})\s+unhandled (\d{1,12})\s+last_unhandled (\d{1,20}) ms\s*"
_VFIO_ACTION = r"(?a)vfio-intx\(([0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7])\)"


class IrqLine(NamedTuple):
    """One numbered row of ``/proc/interrupts``.

    :ivar per_cpu: interrupts handled since boot, one entry an online CPU.
    :ivar chip: what stands between the counts and the handlers, such as ``IO-APIC 16-fasteoi``.
    :ivar actions: the handlers' names, as the drivers gave them; they may hold spaces and parentheses.
    """

    irq: HostIrq
    per_cpu: tuple[int, ...]
    chip: str
    actions: tuple[str, ...]

    @property
    def count(self) -> int:  # type: ignore[override] # a tuple's own count() is of no use here
        """Interrupts since boot, over all CPUs that are online."""
        return sum(self.per_cpu)


class Spurious(NamedTuple):
    """``/proc/irq/N/spurious``: of the last *count* interrupts, *unhandled* were claimed by no handler.

    The kernel disables the line when more than 99,900 of 100,000 were (``__note_interrupt`` in kernel/irq/spurious.c).
    """

    count: int  # type: ignore[assignment] # as above
    unhandled: int


def parse_interrupts(text: str) -> dict[HostIrq, IrqLine]:
    """The numbered rows of ``/proc/interrupts``; rows that make no sense are left out, none raises."""
    lines = text.splitlines()
    cpus = len([word for word in lines[0].split() if word.startswith("CPU")]) if lines else 0
    found = (_parse_row(line, min(cpus, _MOST_CPUS)) for line in lines[1:])
    return {line.irq: line for line in found if line is not None}


def _parse_row(row: str, cpus: int) -> IrqLine | None:
    match = re.fullmatch(_ROW, row)
    if match is None or cpus == 0:
        return None
    words = match[2].split(None, cpus)
    counts = words[:cpus]
    if len(counts) < cpus or not all(word.isascii() and word.isdigit() for word in counts):
        return None
    chip, actions = _split_rest(words[cpus] if len(words) > cpus else "")
    return IrqLine(HostIrq(int(match[1])), tuple(map(int, counts)), chip, actions)


def _split_rest(rest: str) -> tuple[str, tuple[str, ...]]:
    # "IO-APIC   5-edge      ACPI:Ged": the handlers follow the flow's name by two spaces ("%-8s" and "  %s").
    trigger = re.search(_TRIGGER, rest)
    if trigger:
        head, tail = rest[: trigger.end()], rest[trigger.end() :]
    else:
        head, _, tail = rest.rpartition("  ") if "  " in rest else (rest, "", "")
    return escape(" ".join(head.split())), _names(tail.split(", "))


def _names(words: Iterable[str]) -> tuple[str, ...]:
    # A handler may bear the name of a network interface, which may hold any byte but blanks and slashes.
    return tuple(escape(word.strip()[:_LONGEST_NAME]) for word in words if word.strip() not in ("", "(null)"))


def read_interrupts(root: HostRoot) -> Fact[Mapping[HostIrq, IrqLine]]:
    """Every numbered line, by IRQ, from one reading of ``/proc/interrupts``."""
    return read_text(root.file("proc/interrupts"), root=root).map(parse_interrupts)


def read_actions(root: HostRoot, irq: HostIrq) -> Fact[tuple[str, ...]]:
    """The names of the handlers on a line, none if nobody has requested it; from ``/sys/kernel/irq/N/actions``."""
    text = read_text(root.file("sys/kernel/irq", str(irq), "actions"), root=root)
    return text.map(lambda names: _names(names.split(",")))


def read_spurious(root: HostRoot, irq: HostIrq) -> Fact[Spurious]:
    """How many interrupts of a line nobody claimed; from ``/proc/irq/N/spurious``."""
    text = read_text(root.file("proc/irq", str(irq), "spurious"), root=root)
    match = re.fullmatch(_SPURIOUS, text.value or "")
    if text.value is not None and match is None:
        return Fact.unknown(text.source, "not of the form 'count, unhandled, last_unhandled'")
    return text.map(lambda _: Spurious(int(match[1]), int(match[2])) if match else Spurious(0, 0))


def read_counts(root: HostRoot, irqs: Iterable[HostIrq]) -> dict[HostIrq, int]:
    """Interrupts since boot of each of these lines that exists; one reading, for callers that only count.

    A line that nobody has requested has no row, and so no entry.
    """
    table = read_interrupts(root).value or {}
    return {irq: table[irq].count for irq in irqs if irq in table}


def vfio_action(bdf: object) -> str:
    """The name that vfio-pci gives its INTx handler (``vfio_intx_enable`` in drivers/vfio/pci/vfio_pci_intrs.c)."""
    return f"vfio-intx({bdf})"


def vfio_device(action: str) -> Bdf | None:
    """The device whose INTx handler bears that name, None for any other handler."""
    match = re.fullmatch(_VFIO_ACTION, action)
    return None if match is None else Bdf.parse(match[1])
