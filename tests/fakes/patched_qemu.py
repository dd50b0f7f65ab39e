"""A QEMU with our series, as its monitor shows it: one line on a fake device, whose eventfds can be replaced.

It wires as the series does: mask, take down, put up, unmask; with a leash it leaves the unmasking to whoever holds the
other end, and takes over when that closes.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Mapping, Sequence

from tests.fakes.kvm_side import FakeKvmSide
from tests.fakes.vfio_device import FakeVfioDevice
from vfio_intx.abi import eventfd, vfio
from vfio_intx.errors import PeerRefused
from vfio_intx.qemu.monitor import Event, Question
from vfio_intx.wiring.direct import LineEventfds

PATH = "/machine/peripheral/nic"
BDF = "0000:00:10.0"


class PatchedQemu:
    """Also the monitor that leads to it. *faults*: a command (``getfd 2`` is the second one) to refuse it with."""

    name = "the monitor at /run/vm.qmp"
    peer_pid: int | None = None

    def __init__(self, device: FakeVfioDevice) -> None:
        self.device, self.kvm = device, FakeKvmSide()
        self.faults: dict[str, str] = {}
        self.mode, self.scheme = "intx", "irqfd"
        self.properties = ["host", "x-intx-scheme", "x-intx-eventfds"]
        self.names: dict[str, int] = {}
        self.lies = False
        self._seen: dict[str, int] = {}
        self._given: list[int] = []
        self._lock = threading.RLock()
        self._own: LineEventfds | None = None
        self._bell = eventfd.create()
        self._thread: threading.Thread | None = None
        self.device.set_irqs(vfio.trigger(self._bell))
        self._use([])

    # -- the monitor

    def give_descriptor(self, fd: int, name: str) -> None:
        self.execute("getfd", {"fdname": name})
        self.names[name] = os.dup(fd)

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, budget_s: float | None = None
    ) -> object:
        self._seen[command] = self._seen.get(command, 0) + 1
        for key in (command, f"{command} {self._seen[command]}"):
            if key in self.faults:
                raise PeerRefused(command, "GenericError", self.faults[key])
        given = dict(arguments or {})
        match command:
            case "query-commands":
                return [{"name": one} for one in ("getfd", "closefd", "qom-set", "query-vfio-intx")]
            case "device-list-properties":
                return [{"name": one, "type": "str"} for one in self.properties]
            case "query-vfio-intx":
                return [self._state()]
            case "qom-set":
                self._set(str(given["value"]))
            case "closefd":
                if given["fdname"] not in self.names:
                    raise PeerRefused(command, "GenericError", "no such name")
                os.close(self.names.pop(str(given["fdname"])))
        return {}

    def execute_all(
        self, questions: Sequence[Question], *, budget_s: float | None = None
    ) -> list[object | PeerRefused]:
        answers: list[object | PeerRefused] = []
        for command, arguments in questions:
            try:
                answers.append(self.execute(command, arguments))
            except PeerRefused as refusal:
                answers.append(refusal)
        return answers

    def take_events(self) -> tuple[Event, ...]:
        return ()

    def close(self) -> None:
        pass

    def _state(self) -> dict[str, object]:
        told = "qemu" if not self._given or self.lies else "given" if len(self._given) == 2 else "given-ack"
        state: dict[str, object] = {
            "qom-path": PATH, "device-id": "nic", "host": BDF, "mode": self.mode, "wanted": self.scheme,
            "irqchip": "kernel", "pin": 1, "route": "enabled", "gsi": 11, "eventfds": told, "pending": False,
            "mmaps": True, "interrupts": 0, "eois": 0, "switches": 0, "failures": 0,
        }  # fmt: skip
        return state | ({"scheme": self.scheme} if self.mode == "intx" else {})

    # -- the line

    def _set(self, value: str) -> None:
        names = value.split(":") if value else []
        if any(name not in self.names for name in names):
            raise PeerRefused("qom-set", "GenericError", "no such name")
        self._use([self.names.pop(name) for name in names])

    def _use(self, fds: list[int]) -> None:
        with self._lock:
            self._unwire()
            self._given = fds
            trigger, resample = (os.dup(fds[0]), os.dup(fds[1])) if fds else (eventfd.create(), eventfd.create())
            self._own = LineEventfds(trigger, resample)
            self.device.set_irqs(vfio.trigger(trigger))
            self.kvm.bind(trigger, resample)
            if len(fds) < 3:
                self.device.set_irqs(vfio.unmask_eventfd(resample))
            else:
                self._thread = threading.Thread(target=self._watch, args=(fds[2],), daemon=True)
                self._thread.start()
            self.device.set_irqs(vfio.UNMASK)

    def _unwire(self) -> None:
        if self._own is not None:
            self.device.set_irqs(vfio.MASK)
            self.kvm.unbind(self._own.trigger)
            self.device.set_irqs(vfio.UNMASK_DETACH)
            eventfd.signal(self._bell)
            self._own.close()
            self._own = None
        self._drop()

    def _drop(self) -> None:
        for fd in self._given:
            os.close(fd)
        self._given = []

    def _watch(self, leash: int) -> None:
        poller = select.poll()
        poller.register(leash, select.POLLIN)
        while not poller.poll(20):
            with self._lock:
                if len(self._given) < 3 or self._given[2] != leash:
                    return
        with self._lock:
            if len(self._given) == 3 and self._given[2] == leash:
                self._use([])

    @property
    def uses_its_own(self) -> bool:
        """Whether the line runs on QEMU's own eventfds, with VFIO listening."""
        with self._lock:
            return not self._given and self.device.has_unmask_listener

    def unplug(self) -> None:
        """The device goes: INTx off, every descriptor closed."""
        with self._lock:
            self._unwire()
            self.device.set_irqs(vfio.DISABLE)

    def end(self) -> None:
        """The process ends."""
        with self._lock:
            if self._own is not None:
                self._unwire()
        if self._thread is not None:
            self._thread.join(5)
        for fd in self.names.values():
            os.close(fd)
        os.close(self._bell)
