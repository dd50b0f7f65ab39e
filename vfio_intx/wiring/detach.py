"""Take a host function out of a running VM; the function stays with vfio-pci."""

from __future__ import annotations

import json
from dataclasses import dataclass

from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.qemu.guestpci import PassedThrough, list_passed_through
from vfio_intx.qemu.monitor import Monitor
from vfio_intx.wiring.hotplug import remove, wait_released

#: QEMU closes the device from its main loop after a grace period of its RCU: milliseconds, seconds under TCG. So long
#: it is waited for at least, however impatient the caller.
_RELEASE_S = 5.0


@dataclass(frozen=True, slots=True)
class Detached:
    """What was done. ``was_there`` is False where the VM did not have the function: then nothing was.

    :ivar released: whether QEMU has closed the function and its group; False where that took longer than the caller's
        timeout, and than 5 s.
    """

    bdf: Bdf
    device_id: str | None
    was_there: bool
    released: bool

    def as_json(self) -> dict[str, object]:
        """For programs: ``vfio-intx/detach/1``."""
        return {
            "device": str(self.bdf),
            "id": self.device_id,
            "was_attached": self.was_there,
            "released": self.released,
        }

    def in_words(self) -> str:
        """For people, one or two lines."""
        if not self.was_there:
            return f"{self.bdf} is not in this VM: nothing to do"
        late = "" if self.released else "\n  note: QEMU has not closed it yet; wait before it is bound elsewhere"
        return f"{self.bdf} is out of the VM and still on vfio-pci; vfio-intx restore {self.bdf} gives it back{late}"


def find_device(monitor: Monitor, bdf: Bdf) -> PassedThrough | None:
    """The VM's device that is that host function, by its ``host`` property. :raise PeerError: as ``execute`` does."""
    return next((device for device in list_passed_through(monitor) if device.host == bdf), None)


def detach(monitor: Monitor, root: HostRoot, bdf: Bdf, *, timeout_s: float = 10.0) -> Detached:
    """Ask the guest to let the device go, and wait until it has.

    :raise PeerTimeout: the guest did not answer in time: the device is still there and the request pending.
    :raise PeerRefused: QEMU or the guest refused. :raise PeerGone: the VM ended, and with it the attachment.
    :raise KeyboardInterrupt: with a note: a request that QEMU has cannot be taken back.
    """
    device = find_device(monitor, bdf)
    if device is None:
        return Detached(bdf, None, was_there=False, released=True)
    try:
        remove(monitor, device.path, device.id, budget_s=timeout_s)
    except KeyboardInterrupt as stop:
        stop.add_note(f"the guest may have been asked already to let {bdf} go, and may do it later: vfio-intx status")
        raise
    released = wait_released(monitor, root, bdf, budget_s=max(_RELEASE_S, timeout_s))
    return Detached(bdf, device.id, was_there=True, released=released)


def detach_command(monitor: Monitor, bdf: Bdf) -> str | None:
    """The exact QMP command that :func:`detach` would send first, None where there is nothing to do."""
    device = find_device(monitor, bdf)
    return (
        None if device is None else json.dumps({"execute": "device_del", "arguments": {"id": device.id or device.path}})
    )
