"""Adding a vfio-pci device to a running VM and taking one away: the mechanics, each step with its deadline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vfio_intx.deadline import Deadline
from vfio_intx.errors import PeerGone, PeerRefused, PeerTimeout, WorldError
from vfio_intx.host.holders import group_holders
from vfio_intx.host.pci import read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, IommuGroup
from vfio_intx.qemu import replies
from vfio_intx.qemu.guestpci import is_present, list_passed_through
from vfio_intx.qemu.monitor import Monitor, ask
from vfio_intx.wiring.verify import read_host_line

_PERIPHERAL = "/machine/peripheral"
#: ``GenericError`` is the only class; QEMU 5.1 and later say it in these words (qdev_unplug in softmmu/qdev-monitor.c).
_UNDER_WAY = "already in the process of unplug"
#: For some seconds after a plug the slot's power indicator blinks, and no unplug is taken
#: (pcie_cap_slot_unplug_request_cb in hw/pci/pcie.c, shpc_device_unplug_request_cb in hw/pci/shpc.c).
_BUSY = "guest is busy"
_UNPLUG_ERRORS = ("DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR")


def add(monitor: Monitor, arguments: Mapping[str, object], *, budget_s: float) -> None:
    """``device_add``. QEMU pins the guest's whole memory in it, which takes long for a big guest.

    :raise PeerRefused: nothing was added. :raise PeerTimeout: whether it was added is unknown.
    """
    try:
        monitor.execute("device_add", arguments, budget_s=budget_s)
    except PeerTimeout as error:
        error.hint = "QEMU pins the guest's memory meanwhile: give a big guest more, as in --timeout 120"
        raise
    except PeerRefused as error:
        error.hint = _hint_for(error.description)
        raise


def _hint_for(description: str) -> str | None:
    hints = {
        "is not viable": "bind every member of the group to vfio-pci: `vfio-intx scan` lists them",
        "Device or resource busy": "another process holds the device's group; `vfio-intx status` shows who",
        "Cannot allocate memory": "QEMU may lock too little memory: raise its limit (ulimit -l, LimitMEMLOCK=)",
        "Operation not permitted": "QEMU may not open /dev/vfio: run it as root or give its user the group's device",
        "Permission denied": "QEMU may not open /dev/vfio: run it as root or give its user the group's device",
        "no slot/function available": "the bus is full; name another bus with --bus",
    }
    return next((hint for words, hint in hints.items() if words in description), None)


def remove(monitor: Monitor, path: str, device_id: str | None, *, budget_s: float) -> None:
    """``device_del``, and wait until the guest has let go and QEMU has dropped the device.

    :param path: the device's QOM path, which serves for a device without an id too.
    :raise PeerTimeout: the guest did not answer; the request stays with it and QEMU will act on a late answer.
    :raise PeerRefused: QEMU or the guest refused; the device is still there.
    """
    _request_removal(monitor, path, device_id, budget_s=budget_s)
    deadline = Deadline.after("the guest lets the device go", budget_s)
    if deadline.poll(lambda: _is_gone(monitor, path, device_id)):
        return
    state = ask(monitor, "query-status", replies.RunState)
    why = "" if state.running else f" (its vCPUs do not run: {state.status})"
    raise PeerTimeout(
        f"the guest behind {monitor.name}{why}",
        deadline.name,
        budget_s,
        hint="the request stays pending and the device stays in the VM; check that the guest runs and handles PCI "
        "hot-plug (acpiphp, pciehp), then detach again",
    )


def _request_removal(monitor: Monitor, path: str, device_id: str | None, *, budget_s: float) -> None:
    """``device_del``, again while the guest is still busy with the plug; done too where the device is gone already."""
    deadline = Deadline.after("the guest has finished the plug", budget_s)
    busy: list[PeerRefused] = []

    def taken() -> bool:
        try:
            monitor.execute("device_del", {"id": device_id or path}, budget_s=budget_s)
        except PeerRefused as error:
            if not _is_there(monitor, path) or _UNDER_WAY in error.description:
                return True
            if _BUSY not in error.description:
                raise
            busy[:] = [error]
            return False
        return True

    if not deadline.poll(taken):
        busy[0].hint = "the device stays in the VM: the guest is still plugging it in; detach again in some seconds"
        raise busy[0]


def _is_there(monitor: Monitor, path: str) -> bool:
    container, _, name = path.rpartition("/")
    return any(one.name == name for one in ask(monitor, "qom-list", replies.Properties, {"path": container}))


def _is_gone(monitor: Monitor, path: str, device_id: str | None) -> bool:
    if not _is_there(monitor, path):
        return True
    for event in monitor.take_events():
        if event.name in _UNPLUG_ERRORS and path in (event.data.get("path"), event.data.get("device")):
            raise PeerRefused("device_del", "GuestError", "the guest refuses to let the device go")
    return False


def wait_released(monitor: Monitor, root: HostRoot, bdf: Bdf, *, budget_s: float) -> bool:
    """Whether QEMU has closed *bdf* within that time: no INTx handler of vfio's, and its group not open any more.

    QEMU closes a little after it has told that the device is gone. A group that it keeps for another device of the
    VM is not waited for.
    """
    group = _group(root, bdf)
    kept = any(_group(root, one.host) == group for one in list_passed_through(monitor) if one.host is not None)
    holders = None if kept else group

    def closed() -> bool:
        if read_host_line(root, bdf) is not None:
            return False
        return holders is None or monitor.peer_pid not in {holder.pid for holder in group_holders(root, holders)}

    return Deadline.after("QEMU closes the device", budget_s).poll(closed)


def _group(root: HostRoot, bdf: Bdf) -> IommuGroup | None:
    function = read_function(root, bdf)
    return None if function is None else function.group.value


@contextmanager
def undone_on_failure(monitor: Monitor, device_id: str, *, budget_s: float) -> Iterator[None]:
    """Take the device away again if the block fails, by whatever: an error, a timeout, Ctrl-C.

    What could not be undone is added to the error as a note, with the command that undoes it later.
    """
    try:
        yield
    except BaseException as failure:
        failure.add_note(_undo(monitor, device_id, budget_s, failure))
        raise


def _undo(monitor: Monitor, device_id: str, budget_s: float, failure: BaseException) -> str:
    if isinstance(failure, PeerGone):
        return "the VM's end takes the device out; it stays bound to vfio-pci"
    if isinstance(failure, PeerRefused) and failure.command == "device_add":
        # Whatever has that id now is somebody else's: it may have come between our look and our device_add.
        return "nothing was added to the VM"
    try:
        if not is_present(monitor, device_id):
            return "nothing was added to the VM"
        remove(monitor, f"{_PERIPHERAL}/{device_id}", device_id, budget_s=budget_s)
    except (WorldError, KeyboardInterrupt) as error:
        why = str(error) or "the undoing was interrupted"
        return f"the device may still be in the VM as {device_id}: {why}; take it out with `vfio-intx detach`"
    return "the device was taken out of the VM again"
