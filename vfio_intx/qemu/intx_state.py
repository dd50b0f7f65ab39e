"""The INTx state that a QEMU with our series tells: asked for, parsed once, and changed.

A stock QEMU has none of it; :func:`is_told` says which kind a monitor leads to, by what it can do and never by its
version. Names are those of the series' ``qapi/vfio.json``.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import msgspec
from msgspec import Meta

from vfio_intx.chain.scheme import Scheme
from vfio_intx.errors import MissingError, UsageError
from vfio_intx.names import Bdf, Gsi
from vfio_intx.qemu.features import Features
from vfio_intx.qemu.irqchip import IrqchipKind
from vfio_intx.qemu.monitor import Event, Monitor, ask
from vfio_intx.qemu.replies import Name, PinNumber

QUERY = "query-vfio-intx"
SCHEME = "x-intx-scheme"
EVENTFDS = "x-intx-eventfds"
CHANGED = "VFIO_INTX_CHANGED"

#: The schemes that a live line can be switched to; ``split`` is ``irqfd`` on a VM started with a split irqchip.
SWITCHABLE = (Scheme.IRQFD, Scheme.ACK_EVENTFD, Scheme.TRAP)

Count = Annotated[int, Meta(ge=0)]
Descriptor = Annotated[int, Meta(ge=0, lt=1 << 31)]
Number = Annotated[int, Meta(ge=0, lt=1 << 31)]


class Mode(Enum):
    """The kind of interrupt that a device is set up for."""

    NONE = "none"
    INTX = "intx"
    MSI = "msi"
    MSIX = "msix"


class Route(Enum):
    """How the guest's chipset routes the pin."""

    ENABLED = "enabled"
    INVERTED = "inverted"
    DISABLED = "disabled"


class Irqchip(Enum):
    """Where the guest's interrupt controllers are."""

    NONE = "none"
    KERNEL = "kernel"
    SPLIT = "split"


class Eventfds(Enum):
    """Who made the eventfds of the line; with ``given-ack`` they who did also unmask it."""

    QEMU = "qemu"
    GIVEN = "given"
    GIVEN_ACK = "given-ack"


class LiveScheme(Enum):
    """QEMU's words for schemes."""

    IRQFD = "irqfd"
    ACK_EVENTFD = "ack-eventfd"
    TRAP = "trap"


_KINDS = {Irqchip.NONE: IrqchipKind.USERSPACE, Irqchip.KERNEL: IrqchipKind.KERNEL, Irqchip.SPLIT: IrqchipKind.SPLIT}


class IntxState(msgspec.Struct, frozen=True):
    """One device's line as QEMU tells it (``VfioIntxInfo``).

    ``scheme``, the descriptors (numbers in QEMU's process) and ``reason`` are there in mode ``intx`` only; ``reason``
    says why the scheme is not the wanted one. ``interrupts`` and ``eois`` are those that QEMU handled itself: with
    ``irqfd`` they stand still. ``switches`` counts changes of scheme or eventfds, ``failures`` attempts that failed.
    """

    path: Name = msgspec.field(name="qom-path")
    host: Name
    mode: Mode
    wanted: LiveScheme
    irqchip: Irqchip
    pin: PinNumber
    route: Route
    eventfds: Eventfds
    pending: bool
    mmaps: bool
    interrupts: Count
    eois: Count
    switches: Count
    failures: Count
    device_id: Name | None = msgspec.field(name="device-id", default=None)
    scheme: LiveScheme | None = None
    reason: Name | None = None
    gsi: Number | None = None
    trigger_fd: Descriptor | None = msgspec.field(name="trigger-fd", default=None)
    resample_fd: Descriptor | None = msgspec.field(name="resample-fd", default=None)

    @property
    def bdf(self) -> Bdf | None:
        """The host's function; None for a device that is none (a mediated one)."""
        try:
            return Bdf.parse(self.host)
        except UsageError:
            return None

    @property
    def live_scheme(self) -> Scheme | None:
        """The scheme in place, in the project's words: irqfd with a split irqchip is ``split``."""
        if self.mode is not Mode.INTX or self.scheme is None:
            return None
        if self.scheme is LiveScheme.IRQFD and self.irqchip is Irqchip.SPLIT:
            return Scheme.SPLIT
        return Scheme(self.scheme.value)

    @property
    def irqchip_kind(self) -> IrqchipKind:
        """Where the interrupt controllers are, in the project's words."""
        return _KINDS[self.irqchip]

    @property
    def guest_gsi(self) -> Gsi | None:
        """The GSI that the pin is routed to."""
        return None if self.gsi is None else Gsi(self.gsi)


class IntxChanged(msgspec.Struct, frozen=True):
    """The event ``VFIO_INTX_CHANGED``. ``cause`` is QEMU's word: enable, disable, route, scheme, eventfds, leash."""

    path: Name = msgspec.field(name="qom-path")
    cause: Name
    mode: Mode
    device_id: Name | None = msgspec.field(name="device-id", default=None)
    scheme: LiveScheme | None = None
    gsi: Number | None = None
    reason: Name | None = None


def is_told(features: Features) -> bool:
    """Whether this QEMU tells and changes INTx state."""
    return QUERY in features.commands and SCHEME in features.device_properties


def require_told(features: Features, monitor: Monitor) -> None:
    """Refuse a stock QEMU. :raise MissingError: with what can be done without our series."""
    if not is_told(features):
        raise MissingError(
            f"the QEMU behind {monitor.name} cannot change the scheme of a live line: it lacks {QUERY} and {SCHEME}",
            hint="run the VM with a QEMU built by tools/build-qemu (docs/qemu-patches.md); with this one, "
            "`vfio-intx detach` and `vfio-intx attach --scheme` do it, and the guest sees the device go and come",
        )


def read_states(monitor: Monitor) -> list[IntxState]:
    """The state of every vfio-pci device. :raise PeerError: as ``execute`` does, on a stock QEMU ``PeerRefused``."""
    return ask(monitor, QUERY, list[IntxState])


def read_state(monitor: Monitor, bdf: Bdf) -> IntxState:
    """The state of one function. :raise MissingError: if this VM has no such device."""
    for state in read_states(monitor):
        if state.bdf == bdf:
            return state
    raise MissingError(
        f"{bdf} is not in the VM behind {monitor.name}", hint="vfio-intx status shows which VM has which function"
    )


def set_scheme(monitor: Monitor, state: IntxState, scheme: Scheme) -> None:
    """Switch a line. :raise PeerRefused: with QEMU's reason; the line is then as it was."""
    monitor.execute("qom-set", scheme_arguments(state, scheme))


def scheme_arguments(state: IntxState, scheme: Scheme) -> dict[str, object]:
    """The arguments of the ``qom-set`` that switches a line."""
    return {"path": state.path, "property": SCHEME, "value": scheme.value}


def parse_changed(event: Event) -> IntxChanged | None:
    """An event as what it tells of INTx; None if it is another event or malformed (an event can be missed safely)."""
    if event.name != CHANGED:
        return None
    try:
        return msgspec.convert(dict(event.data), IntxChanged)
    except (msgspec.ValidationError, RecursionError):
        return None
