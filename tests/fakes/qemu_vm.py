"""A fake QEMU behind a fake monitor: object tree, PCI tree, interrupt controllers, hot-plug; with faults to inject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.qmp_server import Hangup, Line

_MASKED = 0x10000
_LEVEL = 0x8000


class Refusal(Exception):
    """A command fails with these words."""


@dataclass
class FakeVm:
    """One VM. Every attribute may be changed while it runs.

    :ivar ioapic: ``kvm-ioapic`` or ``ioapic``; *lapic*: ``kvm-apic`` or ``apic``.
    :ivar counts: GSI -> interrupts that QEMU itself raised.
    :ivar guest: what the guest does with a new device: ``listens``, ``programs`` its BARs only, or ``ignores`` it.
    :ivar unplugs: whether the guest answers an unplug request; *refuses_unplug*: whether its answer is no.
    :ivar gsi: where the guest routes the line of a new device.
    :ivar faults: command -> ``hang``, ``die``, ``garbage`` or an error's words; prefixed by ``after-`` the
        command does its work first.
    :ivar on_command: called with each command before it is answered.
    :ivar on_death: called when it dies; the one who serves it stops listening then.
    """

    machine: str = "pc-i440fx-7.2-machine"
    ioapic: str = "kvm-ioapic"
    lapic: str = "kvm-apic"
    hotplug_bus: bool = True
    properties: tuple[str, ...] = ("host", "id", "x-no-kvm-intx", "sysfsdev")
    counts: dict[int, int] = field(default_factory=dict)
    guest: str = "listens"
    unplugs: bool = True
    refuses_unplug: bool = False
    gsi: int = 11
    faults: dict[str, str] = field(default_factory=dict)
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    running: bool = True
    heard: list[dict[str, Any]] = field(default_factory=list)
    on_command: Callable[[str], None] = lambda command: None
    on_death: Callable[[], None] = lambda: None

    def script(self, line: Line) -> None:
        """Serve one connection."""
        line.negotiate()
        while True:
            self._serve(line, line.hear())

    def _serve(self, line: Line, request: dict[str, Any]) -> None:
        command = request["execute"]
        self.heard.append(request)
        if command == "qom-list" and self.refuses_unplug and any(one["execute"] == "device_del" for one in self.heard):
            for name in self.devices:
                data = {"device": name, "path": f"/machine/peripheral/{name}"}
                line.say({"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": data, "timestamp": {}})
        self.on_command(command)
        fault = self.faults.get(command, "")
        reply: dict[str, Any] = {"id": request.get("id")}
        try:
            if not fault or fault.startswith("after-"):
                reply["return"] = self._answer(command, request.get("arguments", {}))
            elif fault not in ("hang", "die", "garbage"):
                raise Refusal(fault)
        except Refusal as refusal:
            reply["error"] = {"class": "GenericError", "desc": str(refusal)}
        match fault.removeprefix("after-"):
            case "hang":
                line.wait_for_hangup()
                raise Hangup
            case "die":
                self.on_death()
                raise Hangup
            case "garbage":
                line.send(b"\x00\xff not QMP\n")
            case _:
                line.say(reply)

    def _answer(self, command: str, arguments: dict[str, Any]) -> object:
        handler = getattr(self, "_" + command.replace("-", "_"), None)
        if handler is None:
            raise Refusal(f"The command {command} has not been found")
        return handler(**{key.replace("-", "_"): value for key, value in arguments.items()})

    def _query_commands(self) -> object:
        names = [name[1:] for name in dir(self) if name.startswith(("_query", "_device", "_qom"))]
        return [{"name": name.replace("_", "-").replace("device-add", "device_add").replace("device-del", "device_del")}
                for name in names]  # fmt: skip

    def _device_list_properties(self, typename: str) -> object:
        if not self.properties:
            raise Refusal(f"Device {typename!r} not found")
        return [{"name": name, "type": "str"} for name in self.properties]

    def _query_status(self) -> object:
        return {"status": "running" if self.running else "paused", "running": self.running, "singlestep": False}

    def _query_cpus_fast(self) -> object:
        return [{"cpu-index": 0, "qom-path": "/machine/unattached/device[0]", "thread-id": 1, "target": "x86_64"}]

    def _human_monitor_command(self, command_line: str) -> object:
        if command_line == "info irq":
            rows = "".join(f"{gsi:2}: {count}\r\n" for gsi, count in sorted(self.counts.items()))
            other = "kvm-i8259" if self.ioapic.startswith("kvm") else "isa-i8259"
            return f"IRQ statistics for {self.ioapic}:\r\n{rows}IRQ statistics for {other}:\r\n"
        version = 0x11 if self.ioapic.startswith("kvm") else 0x20
        listening = any(one["guest"] == "listens" for one in self.devices.values())
        rows = "".join(self._pin(pin, listening) for pin in range(24))
        return f"ioapic0: ver=0x{version:x} id=0x00 sel=0x00\r\n{rows}  IRR      (none)\r\n  Remote IRR (none)\r\n"

    def _pin(self, pin: int, listening: bool) -> str:
        entry = _LEVEL | 0x25 if listening and pin == self.gsi else _MASKED
        return f"  pin {pin:<2} 0x{entry:016x} dest=0 vec={entry & 0xFF:<3} active-hi level        fixed  physical\r\n"

    def _qom_list(self, path: str) -> object:
        tree: dict[str, list[tuple[str, str]]] = {
            "/machine": [("i440fx", "child<i440FX-pcihost>"), ("type", "string")],
            "/machine/i440fx": [("pci.0", "child<PCI>")],
            "/machine/i440fx/pci.0": [("child[0]", "link<i440FX>")],
            "/machine/peripheral": [(name, f"child<{one['driver']}>") for name, one in self.devices.items()],
            "/machine/peripheral-anon": [],
            "/machine/unattached/device[0]": [("lapic", f"child<{self.lapic}>")],
        }
        if path not in tree:
            raise Refusal(f"Device '{path}' not found")
        return [{"name": name, "type": kind} for name, kind in tree[path]]

    def _qom_get(self, path: str, property: str) -> object:
        if (path, property) == ("/machine", "type"):
            return self.machine
        if property == "hotplug-handler":
            return "/machine/unattached/device[18]" if self.hotplug_bus else ""
        device = self.devices.get(path.rpartition("/")[2], {})
        if property not in device:
            raise Refusal(f"Property '{path}.{property}' not found")
        return device[property]

    def _device_add(self, **arguments: Any) -> object:
        if arguments["id"] in self.devices:
            raise Refusal(f"Duplicate device ID '{arguments['id']}'")
        defaults = {"x-no-kvm-intx": False, "guest": self.guest}
        self.devices[arguments["id"]] = {**defaults, **{key.replace("_", "-"): v for key, v in arguments.items()}}
        return {}

    def _device_del(self, id: str) -> object:
        name = id.rpartition("/")[2]
        if name not in self.devices:
            raise Refusal(f"Device '{id}' not found")
        if self.unplugs:
            del self.devices[name]
        return {}

    def _query_pci(self) -> object:
        return [{"bus": 0, "devices": [self._function(*item) for item in enumerate(self.devices.items(), start=4)]}]

    def _function(self, slot: int, item: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        name, device = item
        address = -1 if device["guest"] == "ignores" else 0xFEB00000
        region = {"bar": 0, "address": address, "size": 0x20000, "type": "memory"}
        return {"bus": 0, "slot": slot, "function": 0, "qdev_id": name, "irq_pin": 1,
                "irq": self.gsi if self.gsi < 16 else 10, "regions": [region],
                "class_info": {"class": 512, "desc": "Ethernet controller"},
                "id": {"device": 4110, "vendor": 32902}}  # fmt: skip
