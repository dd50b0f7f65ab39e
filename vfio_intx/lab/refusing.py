"""A live line that somebody asks wrong things of, in L1: QEMU has to refuse, with the reason, and the line to go on."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vfio_intx.abi import eventfd
from vfio_intx.errors import PeerRefused, VerifyError
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.live_line import DEVICE_ID, NETWORK
from vfio_intx.lab.passthrough import ping, set_network_up
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import UserNetwork
from vfio_intx.names import Bdf
from vfio_intx.qemu.intx_state import EVENTFDS, Eventfds, IntxState, LiveScheme, read_states
from vfio_intx.qemu.monitor import QmpMonitor
from vfio_intx.qemu.transports import connect

Attempt = Callable[[], None]


@dataclass(frozen=True, slots=True)
class LiveNic:
    """A guest whose NIC carries pings, and the product's monitor of it."""

    guest: Guest
    monitor: QmpMonitor
    network: UserNetwork

    def set(self, device: str, name: str, value: str) -> None:
        """``qom-set`` on one of the guest's devices. :raise PeerRefused: in QEMU's words."""
        self.monitor.execute("qom-set", {"path": f"/machine/peripheral/{device}", "property": name, "value": value})

    def give(self, trigger: int, resample: int, leash: int | None = None, *, device: str = DEVICE_ID) -> None:
        """Have QEMU use these descriptors for the device's line. :raise PeerRefused: in QEMU's words."""
        fds = {"t": trigger, "r": resample} | ({} if leash is None else {"l": leash})
        for name, fd in fds.items():
            self.monitor.give_descriptor(fd, name)
        self.set(device, EVENTFDS, ":".join(fds))

    def state(self, device: str = DEVICE_ID) -> IntxState:
        """QEMU's account of a device."""
        return next(state for state in read_states(self.monitor) if state.device_id == device)

    def refused(self, attempt: Attempt, reason: str) -> str:
        """QEMU's words. :raise VerifyError: unless it refuses for *reason* and the NIC's line goes on as it was."""
        before = self.state()
        try:
            attempt()
        except PeerRefused as refusal:
            words = refusal.description
        else:
            raise VerifyError(f"QEMU accepted what it should refuse with {reason!r}")
        after = self.state()
        if not re.search(reason, words):
            raise VerifyError(f"QEMU refused, but said {words!r} where {reason!r} was to be expected")
        if (after.scheme, after.eventfds, after.wanted) != (before.scheme, before.eventfds, before.wanted):
            raise VerifyError(f"after {words!r} the line is not what it was: {before} -> {after}")
        self.carries(f"after {words!r}")
        return words

    def carries(self, when: str) -> None:
        """:raise VerifyError: if a ping is lost."""
        answered = ping(self.guest, self.network, 2)
        if answered.received != answered.sent:
            raise VerifyError(f"{when} the line carries no traffic: {answered}, {self.state()}")

    def runs_irqfd_on(self, eventfds: Eventfds) -> None:
        """:raise VerifyError: unless it runs irqfd on eventfds of theirs, and carries."""
        state = self.state()
        if state.eventfds is not eventfds or state.scheme is not LiveScheme.IRQFD:
            raise VerifyError(f"expected irqfd on eventfds of {eventfds.value}: {state}")
        self.carries(f"on eventfds of {eventfds.value}")


@contextlib.contextmanager
def live_nic(options: GuestOptions, nic: Bdf, *, network: UserNetwork = NETWORK, **others: Bdf) -> Iterator[LiveNic]:
    """A guest with the e1000 *nic* up on *network*, and *others* plugged without a driver, by their ids."""
    with Guest.start(options) as guest:
        guest.execute("device_add", driver="vfio-pci", host=str(nic), id=DEVICE_ID, addr="0x4")
        for number, (name, card) in enumerate(others.items(), start=2):
            # Four slots apart, devices share a PIRQ, which is routed only because the NIC has a driver.
            guest.execute("device_add", driver="vfio-pci", host=str(card), id=name, addr=f"{4 * number:#x}")
        guest.load("e1000")
        set_network_up(guest, network, guest.wait_interface())
        ping(guest, network)
        with connect(guest.qmp) as monitor:
            yield LiveNic(guest, monitor, network)


@contextlib.contextmanager
def descriptors() -> Iterator[dict[str, int]]:
    """Two good eventfds (``good``, ``other``), one in ``semaphore`` mode, and a ``pipe``'s reading end."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    semaphore = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
    found = {"good": eventfd.create(), "other": eventfd.create(), "semaphore": semaphore, "pipe": reading}
    try:
        yield found
    finally:
        for fd in (*found.values(), writing):
            os.close(fd)


def said_no(context: Context, *words: str) -> str:
    """The message of our own program. :raise VerifyError: unless it ends with status 1 and tells what to do next."""
    ran = context.vfio_intx(*words, seconds=120)
    if ran.returncode != 1 or "try: " not in ran.stderr:
        raise VerifyError(f"vfio-intx {' '.join(words)} ended with {ran.returncode}: {ran.stderr or ran.stdout}")
    return " | ".join(line.strip() for line in ran.stderr.strip().splitlines())
