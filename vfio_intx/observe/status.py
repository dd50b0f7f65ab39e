"""The lines of the VMs that run now, found from their processes; one short connect, ask and leave for each sample.

What cannot be found out is part of the answer: a monitor that another client holds, a process that may not be looked
into. Such a line is still shown with what the host alone tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial

import msgspec

from vfio_intx.chain.evidence import Evidence, weigh
from vfio_intx.errors import VfioIntxError
from vfio_intx.host.iommu import is_vfio_driver
from vfio_intx.host.pci import list_functions, read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, escape
from vfio_intx.observe.together import together
from vfio_intx.observe.visit import Visit
from vfio_intx.qemu.features import read_counts
from vfio_intx.qemu.guestpci import DEVICES_QUESTIONS, PassedThrough, list_passed_through
from vfio_intx.qemu.irqchip import IrqCounts
from vfio_intx.qemu.monitor import Monitor, human_question
from vfio_intx.qemu.process import QemuProcess, find_processes, holders_among, open_monitor_of
from vfio_intx.wiring.inspect import (
    BOARD_QUESTIONS,
    GUEST_QUESTIONS,
    Board,
    device_question,
    read_board,
    read_guest,
    report,
)
from vfio_intx.wiring.line import LineReport, Uptake
from vfio_intx.wiring.verify import HostLine, HostLook, Witness, look, no_witness, read_host_line, settle

#: Opens a VM's monitor; the caller closes it.
Opener = Callable[[], Monitor]


class VmStatus(msgspec.Struct, frozen=True):
    """One VM and its lines. ``trouble`` says what kept us from asking its QEMU, with the next step."""

    pid: int | None
    name: str | None
    machine: str | None
    lines: tuple[LineReport, ...]
    trouble: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """One entry of ``vms`` in ``vfio-intx/status/1``."""
        return {
            "pid": self.pid,
            "name": None if self.name is None else escape(self.name),
            "machine": None if self.machine is None else escape(self.machine),
            "lines": [line.as_json() for line in self.lines],
            "trouble": list(self.trouble),
        }


class _Asked(msgspec.Struct, frozen=True):
    """What the first visit to a VM brought home. *counts* are older than the host's side of the first samples."""

    board: Board
    devices: tuple[tuple[PassedThrough, Bdf], ...]
    counts: IrqCounts


class _Between(msgspec.Struct, frozen=True):
    """What was seen on the host between the two visits to all VMs: at the start and the end, and by the witnesses."""

    first: HostLook
    last: HostLook
    further: Mapping[Bdf, Sequence[Evidence]]


def gather(
    root: HostRoot, *, interval_s: float, budget_s: float, witness: Witness = no_witness
) -> tuple[VmStatus, ...]:
    """Every VM of this machine, with the lines of those that have passed-through functions.

    :param interval_s: how long the counters are watched; nothing is held meanwhile.
    :param budget_s: for each wait on one QEMU; all are asked at once.
    :param witness: watches each line during the interval for further evidence.
    """
    processes = find_processes(root)
    busy = [process for process in processes if _may_have_lines(process)]
    found = together([partial(_visit, root, _opener(root, process, budget_s)) for process in busy])
    visits = list(zip(busy, found, strict=True))
    asked = [(process.pid, one) for process, one in visits if isinstance(one, _Asked)]
    seen = _watch(root, asked, interval_s, witness)
    ends = together([partial(_conclude, root, process, one, budget_s, seen) for process, one in visits])
    told = {process.pid: end for process, end in zip(busy, ends, strict=True)}
    return tuple(told.get(process.pid) or _without_lines(process) for process in processes)


def gather_one(
    root: HostRoot, opener: Opener, *, interval_s: float, witness: Witness = no_witness, name: str | None = None
) -> VmStatus:
    """The VM behind one monitor that was named. :raise VfioIntxError: if it cannot be asked."""
    with closing(Visit(opener())) as monitor:
        pid, asked = monitor.peer_pid, _ask_first(monitor)
    seen = _watch(root, [(pid, asked)], interval_s, witness)
    with closing(Visit(opener())) as monitor:
        return VmStatus(pid, name, asked.board.machine, _ask_again(monitor, asked, seen))


def _watch(root: HostRoot, asked: Iterable[tuple[int | None, _Asked]], interval_s: float, witness: Witness) -> _Between:
    """Let the interval pass with a witness at every line; without lines there is nothing to wait for.

    The host is looked at once at each end, for all VMs: after the last of them was asked and before any is asked again.
    """
    lines = [(bdf, pid) for pid, one in asked for _, bdf in one.devices]
    first = look(root)
    with ExitStack() as stack:
        further = {bdf: stack.enter_context(witness(bdf, pid)) for bdf, pid in lines}
        if lines:
            time.sleep(interval_s)
    return _Between(first, look(root) if lines else first, further)


def _may_have_lines(process: QemuProcess) -> bool:
    held = process.descriptors.value
    return held is None or bool(held.vfio_devices or held.vfio_nodes)


def _without_lines(process: QemuProcess) -> VmStatus:
    return VmStatus(process.pid, process.command_line.name, process.command_line.machine, ())


def _opener(root: HostRoot, process: QemuProcess, budget_s: float) -> Opener:
    return lambda: open_monitor_of(root, process, budget_s=budget_s)


def _visit(root: HostRoot, opener: Opener) -> _Asked | VfioIntxError:
    try:
        with closing(Visit(opener())) as monitor:
            return _ask_first(monitor)
    except VfioIntxError as error:
        return error


def _ask_first(monitor: Visit) -> _Asked:
    monitor.foresee((*DEVICES_QUESTIONS, *BOARD_QUESTIONS))
    devices = tuple((device, device.host) for device in list_passed_through(monitor) if device.host is not None)
    return _Asked(read_board(monitor), devices, read_counts(monitor))


def _ask_again(monitor: Visit, asked: _Asked, seen: _Between) -> tuple[LineReport, ...]:
    # Answered before the next is sent: QEMU has gone round its main loop by then.
    settle(monitor)
    # The counts come first, so that the window is as narrow as can be.
    asks_of_each = (device_question(device) for device, _ in asked.devices)
    monitor.foresee((human_question("info irq"), *GUEST_QUESTIONS, *asks_of_each))
    counts, guest = read_counts(monitor), read_guest(monitor)
    found: list[LineReport] = []
    for device, bdf in asked.devices:
        samples = (seen.first.sample(bdf, asked.counts), seen.last.sample(bdf, counts))
        further = seen.further.get(bdf, ())
        found.append(report(monitor, asked.board, guest, device, bdf, samples, further=further))
    return tuple(found)


def _conclude(
    root: HostRoot,
    process: QemuProcess,
    found: _Asked | VfioIntxError,
    budget_s: float,
    seen: _Between,
) -> VmStatus:
    machine = process.command_line.machine
    error = found if isinstance(found, VfioIntxError) else None
    if isinstance(found, _Asked):
        machine = found.board.machine
        try:
            with closing(Visit(_opener(root, process, budget_s)())) as monitor:
                lines = _ask_again(monitor, found, seen)
            return VmStatus(process.pid, process.command_line.name, machine, lines)
        except VfioIntxError as second:
            error = second
    lines = tuple(_host_only(root, process))
    return VmStatus(process.pid, process.command_line.name, machine, lines, _words(error, process))


def _words(error: VfioIntxError | None, process: QemuProcess) -> tuple[str, ...]:
    words = [] if error is None else [escape(str(error)) + (f"; {escape(error.hint)}" if error.hint else "")]
    if process.descriptors.error is not None:
        words.append(f"its descriptors cannot be seen ({process.descriptors.error}); run it as root")
    return tuple(words)


def _host_only(root: HostRoot, process: QemuProcess) -> Iterable[LineReport]:
    """The lines of a VM that cannot be asked: the functions that it holds, where vfio handles INTx."""
    held = process.descriptors.value
    for bdf in list_functions(root).get(()) if held is not None and held.vfio_nodes else ():
        function = read_function(root, bdf)
        if function is None or not is_vfio_driver(function.driver.get("")):
            continue
        line = read_host_line(root, bdf) if holders_among(root, (process,), function) else None
        if line is not None:
            yield _unasked(bdf, line)


def _unasked(bdf: Bdf, line: HostLine) -> LineReport:
    return LineReport(
        bdf=bdf,
        device_id=None,
        guest_address=None,
        uptake=Uptake.UNKNOWN,
        irqchip=None,
        configured=None,
        gsi=None,
        host=line,
        qemu_interrupts=None,
        window=None,
        verdict=weigh(()),
        notes=("found by the device file that the process has open; QEMU could not be asked",),
    )
