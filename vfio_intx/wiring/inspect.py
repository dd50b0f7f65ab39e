"""Look at one vfio-pci device of a running VM, from the guest's side and the host's, and change nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vfio_intx.chain.evidence import Evidence, weigh
from vfio_intx.errors import PeerRefused
from vfio_intx.names import Bdf, Gsi
from vfio_intx.qemu.features import NO_KVM_INTX, read_controllers, read_irqchip_kind
from vfio_intx.qemu.guestpci import GuestView, PassedThrough, candidate_gsis, qom_flag, qom_text, view_device
from vfio_intx.qemu.irqchip import Controllers, IrqchipKind
from vfio_intx.qemu.monitor import Monitor
from vfio_intx.wiring.line import LineReport, Uptake
from vfio_intx.wiring.told import read_told, said, sharpened, wanted_scheme
from vfio_intx.wiring.verify import (
    Sample,
    configuration_evidence,
    counters_evidence,
    listening_gsis,
    window,
)

_NO_CONTROLLERS = Controllers((), ())


@dataclass(frozen=True, slots=True)
class Board:
    """What is the same for every device of a VM. ``machine`` is QEMU's type name, such as ``pc-i440fx-7.2-machine``."""

    machine: str
    irqchip: IrqchipKind


def read_board(monitor: Monitor) -> Board:
    """The VM's board. :raise PeerError: as ``execute`` does."""
    return Board(qom_text(monitor, "/machine", "type") or "", read_irqchip_kind(monitor))


@dataclass(frozen=True, slots=True)
class GuestSide:
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


def read_guest_side(monitor: Monitor, board: Board, device_id: str | None) -> GuestSide:
    """Ask for one device. Without an id it cannot be told apart in ``query-pci``, so it is absent then."""
    view = None if device_id is None else view_device(monitor, device_id, board.machine)
    try:
        controllers = read_controllers(monitor)
    except PeerRefused:
        controllers = _NO_CONTROLLERS
    return GuestSide(view, candidate_gsis(board.machine, view.device, view.bridges) if view else (), controllers)


def report(
    monitor: Monitor,
    board: Board,
    device: PassedThrough,
    bdf: Bdf,
    samples: tuple[Sample, Sample],
    *,
    further: Iterable[Evidence] = (),
) -> LineReport:
    """The report on one line from two samples and what QEMU says now.

    :param further: evidence of other kinds (trace events, descriptors), which counts like that gathered here.
    :raise PeerError: as ``execute`` does.
    """
    side = read_guest_side(monitor, board, device.id)
    flag = qom_flag(monitor, device.path, NO_KVM_INTX)
    told = read_told(monitor, bdf)
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
        evidence = [said(told), sharpened(counted, told), *further]
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
