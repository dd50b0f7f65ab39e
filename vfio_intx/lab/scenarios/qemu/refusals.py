"""Eventfds and schemes that a patched QEMU must refuse, with the reason and the line as it was; and the leash.

The word after ``--`` is the QEMU base. ``qemu/refusals-by-state`` has the wrong moments.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from vfio_intx.abi import eventfd
from vfio_intx.deadline import Deadline
from vfio_intx.errors import PeerRefused, VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.guests import GuestOptions
from vfio_intx.lab.live_line import DEVICE_ID, NIC, PATH
from vfio_intx.lab.passthrough import give_to_vfio, qemu_for
from vfio_intx.lab.refusing import Attempt, LiveNic, descriptors, live_nic, said_no
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import Card, LabSpec, UserNetwork
from vfio_intx.qemu.intx_state import EVENTFDS, SCHEME, Eventfds, IntxChanged, parse_changed

#: On a line of its own, in a VM of its own.
SECOND_NETWORK = UserNetwork(3)
SECOND = Card("e1000", 0x11, backend=SECOND_NETWORK)
EDU = Card("edu", 0x12)
SPEC = LabSpec(kernels.DEFAULT, (NIC, SECOND, EDU))
DEADLINE_S = 900.0
#: How long a busy machine may take for what is a matter of milliseconds.
_PATIENCE_S = 30.0

#: Whatever L1's is: a guest with the newest one panics on this emulated CPU, and the guest's is not what is looked at.
GUEST_KERNEL = kernels.DEFAULT

#: The first kernel whose KVM refuses an eventfd that another VM has bound.
_EBUSY_ACROSS = (6, 17)


def inside(context: Context) -> dict[str, object]:
    """Every refusal on the kernel's irqchip and on the split one, a second VM, then the hand-over and the leash."""
    nic, second, edu = (context.bdf(card) for card in SPEC.cards)
    give_to_vfio(nic, second, edu)
    said: dict[str, str] = {}
    program = qemu_for(context.options)
    with live_nic(GuestOptions(kernel=GUEST_KERNEL, irqchip="split", qemu=program), nic) as line:
        said["split"] = line.refused(lambda: line.set(DEVICE_ID, SCHEME, "ack-eventfd"), "split")
        line.monitor.close()
        said["split, our words"] = said_no(context, "switch", str(nic), "ack-eventfd", "--qmp", str(line.guest.qmp))
    with live_nic(GuestOptions(kernel=GUEST_KERNEL, qemu=program), nic, edu=edu) as line:
        said |= _eventfds_refused(line)
        causes = _handed_over(line)
        with live_nic(GuestOptions(kernel=GUEST_KERNEL, qemu=program), second, network=SECOND_NETWORK) as other:
            said["bound in another VM"] = _bound_in_another(line, other)
    for name, words in said.items():
        context.say(f"{name}: {words}")
    return {"schema": "vfio-intx/lab-refusals/2", "kernel": platform.release(), "refusals": said, "causes": causes}


def _eventfds_refused(line: LiveNic) -> dict[str, str]:
    with descriptors() as fd:

        def closed() -> None:
            line.monitor.give_descriptor(fd["good"], "t")
            line.monitor.give_descriptor(fd["other"], "r")
            line.monitor.execute("closefd", {"fdname": "r"})
            line.set(DEVICE_ID, EVENTFDS, "t:r")

        def elsewhere() -> None:
            line.monitor.give_descriptor(fd["good"], "t")
            line.monitor.give_descriptor(fd["other"], "r")
            # The lab's own monitor is another one: names of descriptors belong to the monitor they came by.
            line.guest.execute("qom-set", path=PATH, property=EVENTFDS, value="t:r")

        cases: dict[str, tuple[Attempt, str]] = {
            "unknown name": (lambda: line.set(DEVICE_ID, EVENTFDS, "no-such:name"), "no-such"),
            "closed": (closed, "'r' has not been found"),
            "another monitor's": (elsewhere, "'t' has not been found"),
            "one name": (lambda: line.set(DEVICE_ID, EVENTFDS, "alone"), "expected"),
            "no eventfd": (lambda: line.give(fd["pipe"], fd["good"]), "not an eventfd"),
            "semaphore": (lambda: line.give(fd["semaphore"], fd["good"]), "semaphore"),
            "the same twice": (lambda: line.give(fd["good"], fd["good"]), "same eventfd"),
            "no such scheme": (lambda: line.set(DEVICE_ID, SCHEME, "edge"), "edge"),
        }
        said = {name: line.refused(do, reason) for name, (do, reason) in cases.items()}
        # What one device's irqfd is bound to, another cannot have.
        line.give(fd["good"], fd["other"])
        said["bound already"] = line.refused(lambda: line.give(fd["good"], fd["other"], device="edu"), "busy")
        line.set(DEVICE_ID, EVENTFDS, "")
    return said


def _bound_in_another(line: LiveNic, other: LiveNic) -> str:
    """KVM knows of other VMs' irqfds from Linux 6.17 on; before, the eventfd is taken, which nobody can see."""
    release = tuple(int(word) for word in platform.release().split("-")[0].split(".")[:2])
    with descriptors() as fd:
        line.give(fd["good"], fd["other"])
        try:
            if release >= _EBUSY_ACROSS:
                return other.refused(lambda: other.give(fd["good"], fd["other"]), "busy")
            try:
                other.give(fd["good"], fd["other"])
            except PeerRefused as refusal:
                raise VerifyError(f"this kernel was not expected to refuse: {refusal.description}") from refusal
            other.set(DEVICE_ID, EVENTFDS, "")
            other.carries("back on eventfds of QEMU's own")
            return f"accepted: Linux {platform.release()} cannot tell"
        finally:
            line.set(DEVICE_ID, EVENTFDS, "")
            line.runs_irqfd_on(Eventfds.QEMU)


def _handed_over(line: LiveNic) -> list[str]:
    """Eventfds of ours, then with a leash that is cut: QEMU must take the line back by itself."""
    line.monitor.take_events()
    trigger, resample = eventfd.create(), eventfd.create()
    leash, holder = os.pipe2(os.O_CLOEXEC)
    try:
        line.give(trigger, resample)
        line.runs_irqfd_on(Eventfds.GIVEN)
        line.give(trigger, resample, leash)
        if line.state().eventfds is not Eventfds.GIVEN_ACK:
            raise VerifyError("QEMU does not leave the EOI to the one with the leash")
    finally:
        for fd in (trigger, resample, leash, holder):
            os.close(fd)
    taken_back = Deadline.after("QEMU takes the line back", _PATIENCE_S)
    if not taken_back.poll(lambda: line.state().eventfds is Eventfds.QEMU):
        raise VerifyError(f"the leash is cut, but QEMU has not taken the line back within {_PATIENCE_S:g} s")
    line.runs_irqfd_on(Eventfds.QEMU)
    events = line.monitor.take_events()
    return [change.cause for event in events if isinstance(change := parse_changed(event), IntxChanged)]


def failures(result: Mapping[str, object]) -> list[str]:
    """The events: two hand-overs, then the leash."""
    return [] if result["causes"] == ["eventfds", "eventfds", "leash"] else [f"the events said {result['causes']}"]
