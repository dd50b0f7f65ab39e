"""A fake QEMU with our series: one device whose scheme can be changed while it interrupts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.qemu_vm import FakeVm, Refusal


def line_state(**changes: Any) -> dict[str, Any]:
    """``VfioIntxInfo`` of a line in irqfd, as the real one answers."""
    state: dict[str, Any] = {
        "device-id": "nic", "qom-path": "/machine/peripheral/nic", "host": "0000:00:10.0", "mode": "intx",
        "wanted": "irqfd", "scheme": "irqfd", "irqchip": "kernel", "pin": 1, "route": "enabled", "gsi": 11,
        "eventfds": "qemu", "pending": False, "mmaps": True, "trigger-fd": 24, "resample-fd": 25,
        "interrupts": 0, "eois": 0, "switches": 0, "failures": 0,
    }  # fmt: skip
    state.update({name.replace("_", "-"): value for name, value in changes.items()})
    return {name: value for name, value in state.items() if value is not None}


@dataclass
class PatchedVm(FakeVm):
    """A VM whose main loop answers commands and handles interrupts one after the other, as QEMU's does.

    :ivar state: the line.
    :ivar refusal: what a switch is refused with.
    :ivar lies: a switch changes nothing.
    """

    properties: tuple[str, ...] = ("host", "id", "x-no-kvm-intx", "x-intx-scheme", "x-intx-eventfds", "x-intx-state")
    state: dict[str, Any] = field(default_factory=line_state)
    refusal: str = ""
    lies: bool = False
    _main_loop: threading.Lock = field(default_factory=threading.Lock)

    def interrupt(self, counted_by_host: Callable[[], None]) -> None:
        """One interrupt of the line: the host counts it, and QEMU too unless KVM carries it.

        No command is answered between the two: QEMU handles what was ready before it answers the next one.
        """
        with self._main_loop:
            counted_by_host()
            if self.state.get("scheme") in ("trap", "ack-eventfd"):
                self.state["interrupts"] += 1
                self.state["mmaps"] = self.state["scheme"] != "trap"

    def _answer(self, command: str, arguments: dict[str, Any]) -> object:
        with self._main_loop:
            return super()._answer(command, arguments)

    def _query_vfio_intx(self) -> object:
        return [dict(self.state)]

    def _qom_set(self, path: str, property: str, value: str) -> object:
        if self.refusal:
            raise Refusal(self.refusal)
        if (path, property) != (self.state["qom-path"], "x-intx-scheme"):
            raise Refusal(f"Property '{path}.{property}' not found")
        if not self.lies:
            self.state |= {"wanted": value, "scheme": value, "switches": self.state["switches"] + 1, "mmaps": True}
        return {}
