"""Eventfds of our making in a QEMU with our series: handed over by the monitor, used for a live line, taken back.

QEMU copies the descriptors, does KVM's side itself (nobody else can) and follows the guest's route changes. With a
leash it leaves the unmasking to us: the leash is the reading end of a pipe, and when its other end closes, because we
close it or because we died, QEMU takes over with eventfds of its own. The kernel closes it for us whatever kills us.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol, runtime_checkable

from vfio_intx.chain.scheme import Scheme
from vfio_intx.errors import MissingError, PeerError, RefusedError, VerifyError
from vfio_intx.names import Bdf
from vfio_intx.qemu.features import Features, probe
from vfio_intx.qemu.intx_state import EVENTFDS, Eventfds, IntxState, Mode, read_state, require_told
from vfio_intx.qemu.monitor import Monitor
from vfio_intx.wiring.direct import LineEventfds

_serial = itertools.count()


@runtime_checkable
class Carrier(Protocol):
    """A monitor that can pass descriptors: a Unix socket of our own, not one behind ``virsh``."""

    def give_descriptor(self, fd: int, name: str) -> None:
        """Let QEMU have a copy of *fd* under *name*."""


def require_carrier(monitor: Monitor, features: Features) -> Carrier:
    """See that this VM can be given eventfds at all. :raise MissingError: saying what it lacks."""
    if not isinstance(monitor, Carrier):
        raise MissingError(
            f"{monitor.name} cannot pass descriptors", hint="name the VM's QMP socket with --qmp: virsh passes none"
        )
    require_told(features, monitor)
    if EVENTFDS not in features.device_properties or "getfd" not in features.commands:
        raise MissingError(f"the QEMU behind {monitor.name} takes no eventfds: it lacks {EVENTFDS}")
    return monitor


def require_handover(monitor: Monitor, bdf: Bdf) -> IntxState:
    """See that this VM can take eventfds for *bdf* now; its state.

    :raise MissingError: a QEMU without our series, a monitor that passes no descriptors, or no such device.
    :raise RefusedError: the line is not in a state in which it can take any. Nothing was changed.
    """
    require_carrier(monitor, probe(monitor))
    state = read_state(monitor, bdf)
    if state.mode is not Mode.INTX:
        raise RefusedError(
            f"{bdf} has no INTx in use: its interrupt mode is {state.mode.value}",
            hint="only a guest whose driver uses the pin has a line to wire",
        )
    if state.live_scheme not in (Scheme.IRQFD, Scheme.SPLIT):
        now = "nothing" if state.live_scheme is None else state.live_scheme.value
        raise RefusedError(f"{bdf} runs {now}, and only irqfd takes eventfds", hint=f"vfio-intx switch {bdf} irqfd")
    return state


def names_of(pair: LineEventfds, leash: int | None = None) -> dict[str, int]:
    """Fresh names for the descriptors of one line, in the order in which the property takes them."""
    number = next(_serial)
    roles = {"trigger": pair.trigger, "resample": pair.resample} | ({} if leash is None else {"leash": leash})
    return {f"vfio-intx-{role}-{number}": fd for role, fd in roles.items()}


@contextmanager
def lent(monitor: Monitor, names: Mapping[str, int]) -> Iterator[str]:
    """QEMU has copies of the descriptors under these names, as the property's value, for one command to take.

    If the block raises, the names that no command took are dropped, so that no copy stays behind in QEMU.
    """
    if not isinstance(monitor, Carrier):
        raise MissingError(f"{monitor.name} cannot pass descriptors")
    try:
        for name, fd in names.items():
            monitor.give_descriptor(fd, name)
        yield ":".join(names)
    except BaseException:
        for name in names:
            with suppress(PeerError):
                monitor.execute("closefd", {"fdname": name})
        raise


def hand_over(monitor: Monitor, state: IntxState, pair: LineEventfds, leash: int | None = None) -> None:
    """Have QEMU use *pair* for the line from now on. Our copies stay ours: without a leash, close them at once.

    :param leash: the reading end of the pipe; with it, whoever holds the other end unmasks the device from now on.
    :raise PeerRefused: with QEMU's reason; the line is as it was.
    :raise PeerError: otherwise; whether QEMU has taken them is unknown. With a leash, closing it settles that.
    """
    with lent(monitor, names_of(pair, leash)) as value:
        monitor.execute("qom-set", {"path": state.path, "property": EVENTFDS, "value": value})


def take_back(monitor: Monitor, state: IntxState) -> None:
    """Have QEMU use eventfds of its own again. :raise PeerRefused: with QEMU's reason; the line is as it was."""
    monitor.execute("qom-set", {"path": state.path, "property": EVENTFDS, "value": ""})


def verify(monitor: Monitor, bdf: Bdf, expected: Eventfds, *, running: bool = True) -> IntxState:
    """Read back whose eventfds the line uses. :raise VerifyError: not *expected*'s, or it runs another scheme now.

    :param running: whether it must run irqfd already; a device that was just added waits for the guest's route.
    """
    state = read_state(monitor, bdf)
    if state.eventfds is not expected or (running and state.live_scheme not in (Scheme.IRQFD, Scheme.SPLIT)):
        now = "nothing" if state.live_scheme is None else state.live_scheme.value
        raise VerifyError(
            f"{bdf}: QEMU agreed, but uses eventfds of {state.eventfds.value!r} and runs {now}",
            hint="the guest may have reset the device just now; vfio-intx status shows the line",
        )
    return state
