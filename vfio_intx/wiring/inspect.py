"""Look at one vfio-pci device of a running VM, from the guest's side and the host's, and change nothing."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from vfio_intx.chain.evidence import Evidence, weigh
from vfio_intx.errors import PeerRefused
from vfio_intx.names import Bdf, Gsi
from vfio_intx.qemu.features import NO_KVM_INTX, read_controllers, read_irqchip_kind
from vfio_intx.qemu.guestpci import (
    Functions,
    GuestView,
    PassedThrough,
    candidate_gsis,
    get_question,
    qom_flag,
    qom_text,
    read_functions,
    view_device,
)
from vfio_intx.qemu.intx_state import QUERY, IntxState
from vfio_intx.qemu.irqchip import Controllers, IrqchipKind
from vfio_intx.qemu.monitor import Monitor, Question, human_question
from vfio_intx.wiring.line import LineReport, Uptake
from vfio_intx.wiring.told import qemu_evidence, read_told, told_apart_by_mmaps, told_of, wanted_scheme
from vfio_intx.wiring.verify import (
    Sample,
    configuration_evidence,
    counters_evidence,
    listening_gsis,
    window,
)

_NO_CONTROLLERS = Controllers((), ())


class Board(msgspec.Struct, frozen=True):
    """What is the same for every device of a VM. ``machine`` is QEMU's type name, such as ``pc-i440fx-7.2-machine``."""

    machine: str
    irqchip: IrqchipKind


def read_board(monitor: Monitor) -> Board:
    """The VM's board. :raise PeerError: as ``execute`` does."""
    return Board(qom_text(monitor, "/machine", "type") or "", read_irqchip_kind(monitor))


#: What :func:`read_board` asks first.
BOARD_QUESTIONS: tuple[Question, ...] = (get_question("/machine", "type"), human_question("info irq"))


class Guest(msgspec.Struct, frozen=True):
    """A guest at one moment, for the reports on its devices. ``told`` is empty on a stock QEMU."""

    functions: Functions
    controllers: Controllers
    told: tuple[IntxState, ...]


#: What :func:`read_guest` asks.
GUEST_QUESTIONS: tuple[Question, ...] = (("query-pci", None), human_question("info pic"), (QUERY, None))


def read_guest(monitor: Monitor) -> Guest:
    """Ask for all that the reports have in common. :raise PeerError: as ``execute`` does."""
    return Guest(read_functions(monitor), _controllers(monitor), read_told(monitor))


def _controllers(monitor: Monitor) -> Controllers:
    try:
        return read_controllers(monitor)
    except PeerRefused:
        return _NO_CONTROLLERS


def device_question(device: PassedThrough) -> Question:
    """What :func:`report` asks of one device."""
    return get_question(device.path, NO_KVM_INTX)


class GuestSide(msgspec.Struct, frozen=True):
    """One device as the guest has it at one moment."""

    view: GuestView | None
    candidates: tuple[int, ...]
    controllers: Controllers

    @property
    def gsis(self) -> tuple[Gsi, ...]:
        """Those that its line may be on, by what the guest listens to now."""
        return listening_gsis(self.candidates, self.controllers)

    @property
    def uptake(self) -> Uptake:
        """How far the guest has got."""
        if self.view is None:
            return Uptake.ABSENT
        if not self.view.is_programmed:
            return Uptake.SEEN
        return Uptake.PROGRAMMED if not self.gsis else Uptake.LISTENING


def guest_side(guest: Guest, board: Board, device_id: str | None) -> GuestSide:
    """One device of a guest. Without an id it cannot be told apart in ``query-pci``, so it is absent then."""
    view = None if device_id is None else view_device(guest.functions, device_id, board.machine)
    candidates = candidate_gsis(board.machine, view.device, view.bridges) if view else ()
    return GuestSide(view, candidates, guest.controllers)


def read_guest_side(monitor: Monitor, board: Board, device_id: str) -> GuestSide:
    """As :func:`guest_side`, by asking now, and only what that takes. :raise PeerError: as ``execute`` does."""
    return guest_side(Guest(read_functions(monitor), _controllers(monitor), ()), board, device_id)


def report(
    monitor: Monitor,
    board: Board,
    guest: Guest,
    device: PassedThrough,
    bdf: Bdf,
    samples: tuple[Sample, Sample],
    *,
    further: Iterable[Evidence] = (),
) -> LineReport:
    """The report on one line from two samples and what QEMU says now, *guest* included.

    :param further: evidence of other kinds (trace events, descriptors), which counts like that gathered here.
    :raise PeerError: as ``execute`` does.
    """
    side = guest_side(guest, board, device.id)
    flag = qom_flag(monitor, device.path, NO_KVM_INTX)
    told = told_of(guest.told, bdf)
    first, last = samples
    gsis = side.gsis if told is None or told.guest_gsi not in side.gsis else (told.guest_gsi,)
    seen = window(first, last, gsis)
    gsi = gsis[0] if len(gsis) == 1 else None
    counted = counters_evidence(
        seen,
        board.irqchip,
        gsis,
        host_others=last.host.others if last.host else (),
        guest_others=side.view.shares_line_with if side.view else (),
    )
    if told is None:
        evidence = [configuration_evidence(flag, board.irqchip), counted, *further]
    else:
        evidence = [qemu_evidence(told), told_apart_by_mmaps(counted, told), *further]
    return LineReport(
        bdf=bdf,
        device_id=device.id,
        guest_address=side.view.device.address if side.view else None,
        uptake=side.uptake,
        irqchip=board.irqchip,
        configured=evidence[0].speaks_for if told is None else wanted_scheme(told),
        gsi=gsi,
        host=last.host,
        qemu_interrupts=None if gsi is None else last.counts.of(gsi),
        window=seen,
        verdict=weigh(evidence),
        notes=tuple(_notes(root_line=last.host is not None, gsis=gsis, side=side, device=device)),
        told=told,
    )


def _notes(*, root_line: bool, gsis: tuple[Gsi, ...], side: GuestSide, device: PassedThrough) -> Iterable[str]:
    if not root_line:
        yield "vfio has no INTx handler for it: the guest uses MSI, or has INTx switched off"
    if device.id is None:
        yield "the device has no id, so its place in the guest is unknown"
    elif side.uptake is Uptake.ABSENT:
        yield "the guest's PCI tree does not show it"
    elif len(gsis) > 1:
        yield f"its GSI is one of {', '.join(map(str, gsis))}: the guest routes it, and QEMU does not tell"
    elif side.uptake is not Uptake.LISTENING:
        yield "no driver in the guest listens to its interrupt yet"
