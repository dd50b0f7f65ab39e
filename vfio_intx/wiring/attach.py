"""Give a host function to a running VM with a chosen scheme, and prove what came out.

In order: look at the host, look at the VM, add the device, wait until the guest has taken it, watch both witnesses.
Before ``device_add`` nothing is changed; after it every failure takes the device out again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import msgspec

from vfio_intx.chain.scheme import Scheme
from vfio_intx.deadline import Deadline
from vfio_intx.errors import BusyError, MissingError, RefusedError, UsageError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.qemu.features import NO_KVM_INTX, Features, probe, require_attach
from vfio_intx.qemu.guestpci import PassedThrough, default_device_id, find_bus, is_present, list_passed_through
from vfio_intx.qemu.intx_state import EVENTFDS, Eventfds
from vfio_intx.qemu.irqchip import IrqchipKind
from vfio_intx.qemu.monitor import Monitor
from vfio_intx.wiring.direct import check_eventfds, own_eventfds
from vfio_intx.wiring.handover import lent, names_of, require_carrier, verify
from vfio_intx.wiring.hotplug import add, undone_on_failure
from vfio_intx.wiring.inspect import Board, read_board, read_guest, read_guest_side, report
from vfio_intx.wiring.line import LineReport, Uptake
from vfio_intx.wiring.ready import require_free, require_ready
from vfio_intx.wiring.verify import Witness, no_witness, open_sample, watch

#: The schemes that stock QEMU can be told to use when a device is added.
CHOICES = (Scheme.IRQFD, Scheme.TRAP)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    :ivar device_id: QEMU's id for the device; None for one made of the address.
    :ivar bus: the guest's bus by name; None to look for one.
    :ivar timeout_s: for each wait: a command, the guest's uptake, the undoing.
    :ivar prove_s: how long to wait for an interrupt to prove the scheme by, once the guest listens; 0 for not at all.
    :ivar direct: whether QEMU shall use eventfds that we make and check (patched QEMU).
    """

    bdf: Bdf
    scheme: Scheme = Scheme.IRQFD
    device_id: str | None = None
    bus: str | None = None
    timeout_s: float = 10.0
    prove_s: float = 3.0
    direct: bool = False

    def __post_init__(self) -> None:
        """:raise UsageError: the scheme is none that stock QEMU can be told."""
        if self.scheme not in CHOICES:
            raise UsageError(
                f"QEMU cannot be told to use {self.scheme.value}",
                hint="irqfd or trap; split comes from starting QEMU with kernel-irqchip=split",
            )

    @property
    def id(self) -> str:
        """The id that the device gets."""
        return self.device_id or default_device_id(self.bdf)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done: the arguments of ``device_add``, and what is worth knowing before."""

    arguments: dict[str, object]
    notes: tuple[str, ...]

    @property
    def command(self) -> str:
        """The exact QMP command."""
        return json.dumps({"execute": "device_add", "arguments": self.arguments})


def plan(request: Request, monitor: Monitor, root: HostRoot) -> Plan:
    """Look at host and VM and decide; nothing is changed.

    :raise MissingError: something is not there: function, pin, group, bus, QEMU's feature.
    :raise RefusedError: the function is not ready, or the VM cannot run the scheme.
    :raise BusyError: another VM, or this one, has the function.
    """
    function = require_ready(root, request.bdf)
    features = probe(monitor)
    require_attach(features, monitor)
    _require_absent(request, monitor)
    require_free(root, function, monitor.peer_pid)
    board = read_board(monitor)
    notes = _require_possible(request.scheme, board, features)
    arguments: dict[str, object] = {"driver": "vfio-pci", "id": request.id, "host": str(request.bdf)}
    arguments["bus"] = request.bus or find_bus(monitor).name
    if features.can_choose_scheme:
        arguments[NO_KVM_INTX] = request.scheme is Scheme.TRAP
    if request.direct:
        notes = (*notes, *_require_direct(request, monitor, features))
    return Plan(arguments, notes)


def _require_direct(request: Request, monitor: Monitor, features: Features) -> tuple[str, ...]:
    if request.scheme is Scheme.TRAP:
        raise UsageError("--direct is about irqfd: trap has no eventfd that KVM would signal")
    require_carrier(monitor, features)
    return (f"the eventfds are made here, given to QEMU by getfd and named in {EVENTFDS}",)


def _require_absent(request: Request, monitor: Monitor) -> None:
    for device in list_passed_through(monitor):
        if device.host == request.bdf:
            raise BusyError(
                f"{request.bdf} is in this VM already, as {device.id or device.path}",
                hint=f"vfio-intx status shows it; vfio-intx detach {request.bdf} takes it out",
            )
    if is_present(monitor, request.id):
        raise BusyError(f"the VM has another device with the id {request.id}", hint="choose one with --id")


def _require_possible(scheme: Scheme, board: Board, features: Features) -> tuple[str, ...]:
    if scheme is Scheme.TRAP:
        if not features.can_choose_scheme and board.irqchip is not IrqchipKind.USERSPACE:
            raise MissingError(f"this QEMU has no property {NO_KVM_INTX}, so trap cannot be chosen")
        return ()
    if board.irqchip is IrqchipKind.USERSPACE:
        raise RefusedError(
            "this VM's interrupt controllers live in QEMU, so KVM cannot inject: irqfd is impossible",
            hint="use --scheme trap, or start QEMU with -accel kvm and without kernel-irqchip=off",
        )
    if board.irqchip is IrqchipKind.SPLIT:
        return ("the VM was started with kernel-irqchip=split: the line will run as split, not irqfd",)
    return ()


def attach(request: Request, monitor: Monitor, root: HostRoot, *, witness: Witness = no_witness) -> LineReport:
    """Do it all; the report says which scheme is proven, or why none is yet.

    :param witness: watches the line for further evidence while an interrupt is waited for.
    :raise WorldError: as :func:`plan` does, and whatever QEMU answers. Nothing is left in the VM then, or a note on
        the error says what is.
    """
    planned = plan(request, monitor, root)
    board = read_board(monitor)
    with undone_on_failure(monitor, request.id, budget_s=request.timeout_s):
        if request.direct:
            _add_direct(request, monitor, root, planned.arguments)
        else:
            add(monitor, planned.arguments, budget_s=request.timeout_s)
        device = _the_device(request, monitor)
        found = _follow(request, monitor, root, board, device, witness)
    noted: LineReport = msgspec.structs.replace(found, notes=(*planned.notes, *found.notes))
    return noted


def _add_direct(request: Request, monitor: Monitor, root: HostRoot, arguments: dict[str, object]) -> None:
    """Add the device on eventfds of ours. QEMU has its copies then; ours are closed, or its teardown would fail."""
    with own_eventfds() as pair:
        check_eventfds(pair, proc=root.at("proc"))
        with lent(monitor, names_of(pair)) as value:
            add(monitor, {**arguments, EVENTFDS: value}, budget_s=request.timeout_s)
    verify(monitor, request.bdf, Eventfds.GIVEN, running=False)


def _the_device(request: Request, monitor: Monitor) -> PassedThrough:
    for device in list_passed_through(monitor):
        if device.id == request.id:
            return device
    raise MissingError(f"QEMU accepted {request.bdf} but has no device {request.id} now", hint="see QEMU's log")


def _follow(
    request: Request, monitor: Monitor, root: HostRoot, board: Board, device: PassedThrough, witness: Witness
) -> LineReport:
    """Wait for the guest, then for an interrupt; a deadline that passes is no failure: the report says so."""
    first = open_sample(monitor, root, request.bdf)
    taken = Deadline.after("the guest takes the device", request.timeout_s)

    def listening() -> bool:
        return read_guest_side(monitor, board, request.id).uptake is Uptake.LISTENING

    prove_s = request.prove_s if taken.poll(listening) else 0.0
    with witness(request.bdf, monitor.peer_pid) as further:
        until = Deadline.after("an interrupt to prove by", max(prove_s, 0.001))
        last = watch(monitor, root, request.bdf, first, until)
    return report(monitor, board, read_guest(monitor), device, request.bdf, (first, last), further=further)
