"""What the patched QEMU must refuse, each with its reason and the line as it was; and the leash: its holder dies."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator

from vfio_intx.abi import eventfd
from vfio_intx.deadline import Deadline
from vfio_intx.errors import PeerRefused, VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.passthrough import give_to_vfio, ping, qemu_for, set_network_up
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import Card, LabSpec, UserNetwork
from vfio_intx.qemu.intx_state import (
    EVENTFDS,
    SCHEME,
    Eventfds,
    IntxChanged,
    IntxState,
    LiveScheme,
    Mode,
    parse_changed,
    read_states,
)
from vfio_intx.qemu.monitor import QmpMonitor
from vfio_intx.qemu.transports import connect

NETWORK = UserNetwork()
NIC = Card("e1000", 0x10, backend=NETWORK)
EDU = Card("edu", 0x11)
SPEC = LabSpec(kernels.DEFAULT, (NIC, EDU))
DEADLINE_S = 600.0

#: The edu card's MSI capability: message control, in the guest's copy of its configuration space.
_MSI_CONTROL = 0x42


def inside(context: Context) -> dict[str, object]:
    """Every refusal on the kernel's irqchip, those of the split one, then the hand-over and the leash."""
    give_to_vfio(context.bdf(NIC), context.bdf(EDU))
    said: dict[str, str] = {}
    program = qemu_for(context.options)
    with _running(context, GuestOptions(irqchip="split", qemu=program)) as (guest, monitor):
        said["split"] = _refused(guest, monitor, lambda: _set(monitor, "nic", SCHEME, "ack-eventfd"), "split")
    with _running(context, GuestOptions(qemu=program)) as (guest, monitor):
        said |= _eventfds_refused(guest, monitor)
        said["msi"] = _msi_refused(guest, monitor)
        causes = _handed_over(guest, monitor)
    for name, words in said.items():
        context.say(f"{name}: {words}")
    return {"schema": "vfio-intx/lab-refusals/1", "refusals": said, "causes": causes}


@contextlib.contextmanager
def _running(context: Context, options: GuestOptions) -> Iterator[tuple[Guest, QmpMonitor]]:
    with Guest.start(options) as guest:
        guest.execute("device_add", driver="vfio-pci", host=str(context.bdf(NIC)), id="nic", addr="0x4")
        # Four slots apart, the two share a PIRQ, which is routed only because the NIC has a driver.
        guest.execute("device_add", driver="vfio-pci", host=str(context.bdf(EDU)), id="edu", addr="0x8")
        guest.load("e1000")
        set_network_up(guest, NETWORK, guest.wait_interface())
        ping(guest, NETWORK)
        with connect(guest.qmp) as monitor:
            yield guest, monitor


def _set(monitor: QmpMonitor, device: str, name: str, value: str) -> None:
    monitor.execute("qom-set", {"path": f"/machine/peripheral/{device}", "property": name, "value": value})


def _state(monitor: QmpMonitor, device: str = "nic") -> IntxState:
    return next(state for state in read_states(monitor) if state.device_id == device)


def _refused(guest: Guest, monitor: QmpMonitor, attempt: Callable[[], None], reason: str) -> str:
    """QEMU's words. :raise VerifyError: unless it refuses for *reason* and the line goes on as it was."""
    before = _state(monitor)
    try:
        attempt()
    except PeerRefused as refusal:
        words = refusal.description
    else:
        raise VerifyError(f"QEMU accepted what it should refuse with {reason!r}")
    after = _state(monitor)
    if not re.search(reason, words):
        raise VerifyError(f"QEMU refused, but said {words!r} where {reason!r} was to be expected")
    if (after.scheme, after.eventfds, after.wanted) != (before.scheme, before.eventfds, before.wanted):
        raise VerifyError(f"after {words!r} the line is not what it was: {before} -> {after}")
    answered = ping(guest, NETWORK, 2)
    if answered.received != answered.sent:
        raise VerifyError(f"after {words!r} the line carries no traffic: {answered}")
    return words


def _eventfds_refused(guest: Guest, monitor: QmpMonitor) -> dict[str, str]:
    said: dict[str, str] = {}
    with contextlib.ExitStack() as open_files:

        def kept(fd: int) -> int:
            open_files.callback(os.close, fd)
            return fd

        good, other = kept(eventfd.create()), kept(eventfd.create())
        semaphore = kept(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE))
        reading, _ = (kept(fd) for fd in os.pipe2(os.O_CLOEXEC))

        def attempt(trigger: int, resample: int, device: str = "nic") -> Callable[[], None]:
            def do() -> None:
                monitor.give_descriptor(trigger, "t")
                monitor.give_descriptor(resample, "r")
                _set(monitor, device, EVENTFDS, "t:r")

            return do

        def unknown() -> None:
            _set(monitor, "nic", EVENTFDS, "no-such:name")

        cases: dict[str, tuple[Callable[[], None], str]] = {
            "unknown name": (unknown, "no-such"),
            "one name": (lambda: _set(monitor, "nic", EVENTFDS, "alone"), "expected"),
            "no eventfd": (attempt(reading, good), "not an eventfd"),
            "semaphore": (attempt(semaphore, good), "semaphore"),
            "the same twice": (attempt(good, good), "same eventfd"),
            "no such scheme": (lambda: _set(monitor, "nic", SCHEME, "edge"), "edge"),
        }
        said = {name: _refused(guest, monitor, do, reason) for name, (do, reason) in cases.items()}
        # What one device's irqfd is bound to, another cannot have.
        attempt(good, other)()
        said["bound already"] = _refused(guest, monitor, attempt(good, other, "edu"), "busy")
        _set(monitor, "nic", EVENTFDS, "")
    return said


def _msi_refused(guest: Guest, monitor: QmpMonitor) -> str:
    """The guest turns MSI on in the edu card, which has no driver there to mind."""
    path = next(bdf for bdf, name in guest.pci_devices().items() if name == "1234:11e8")
    config = f"/sys/bus/pci/devices/{path}/config"
    guest.check(f"printf '\\001' | dd of={config} bs=1 seek={_MSI_CONTROL} conv=notrunc 2>/dev/null")
    if _state(monitor, "edu").mode is not Mode.MSI:
        raise VerifyError(f"the guest turned MSI on, but QEMU says {_state(monitor, 'edu').mode}")
    return _refused(guest, monitor, lambda: _set(monitor, "edu", SCHEME, "trap"), "does not use INTx")


def _handed_over(guest: Guest, monitor: QmpMonitor) -> list[str]:
    """Eventfds of ours, then with a leash that is cut: QEMU must take the line back by itself."""
    monitor.take_events()
    trigger, resample = eventfd.create(), eventfd.create()
    leash, holder = os.pipe2(os.O_CLOEXEC)
    try:
        for fd, name in ((trigger, "t"), (resample, "r")):
            monitor.give_descriptor(fd, name)
        _set(monitor, "nic", EVENTFDS, "t:r")
        _expect(guest, monitor, Eventfds.GIVEN)
        for fd, name in ((trigger, "t"), (resample, "r"), (leash, "l")):
            monitor.give_descriptor(fd, name)
        _set(monitor, "nic", EVENTFDS, "t:r:l")
        if _state(monitor).eventfds is not Eventfds.GIVEN_ACK:
            raise VerifyError("QEMU does not leave the EOI to the one with the leash")
    finally:
        for fd in (trigger, resample, leash, holder):
            os.close(fd)
    taken_back = Deadline.after("QEMU takes the line back", 2.0)
    if not taken_back.poll(lambda: _state(monitor).eventfds is Eventfds.QEMU):
        raise VerifyError("the leash is cut, but QEMU has not taken the line back within 2 s")
    _expect(guest, monitor, Eventfds.QEMU)
    changes = [change for event in monitor.take_events() if isinstance(change := parse_changed(event), IntxChanged)]
    return [change.cause for change in changes]


def _expect(guest: Guest, monitor: QmpMonitor, eventfds: Eventfds) -> None:
    state, answered = _state(monitor), ping(guest, NETWORK, 3)
    if state.eventfds is not eventfds or state.scheme is not LiveScheme.IRQFD or answered.received != answered.sent:
        raise VerifyError(f"expected traffic by irqfd on eventfds of {eventfds.value}: {state}, {answered}")
