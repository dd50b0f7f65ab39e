"""A host as a directory: the files of sysfs and procfs that host/ reads, made from a few lines of description."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vfio_intx.host.root import HostRoot


@dataclass
class FakeFunction:
    """One PCI function to be made; numbers and words as in sysfs, *pin* 0 for none."""

    bdf: str
    vendor: int = 0x8086
    device: int = 0x100E
    class_code: int = 0x020000
    subsystem: tuple[int, int] = (0x1AF4, 0x1100)
    pin: int = 1
    irq: int = 11
    driver: str = ""
    override: str = ""
    group: int | None = None
    msi: bool = False
    msix: bool = False
    msi_enabled: bool = False
    msi_vectors: tuple[int, ...] = ()
    command: int = 0x0007
    status: int = 0
    header_type: int = 0
    enable: int = 1
    power: str = "D0"
    parent: str | None = None
    dead: bool = False
    net: tuple[str, ...] = ()
    extra: dict[str, str] = field(default_factory=dict)
    directories: tuple[str, ...] = ()
    revision: int = 0

    def config(self) -> bytes:
        """Its configuration space, 256 bytes."""
        if self.dead:
            return b"\xff" * 256
        raw = bytearray(256)
        capabilities = [(0x05, self.msi), (0x11, self.msix)]
        there = [number for number, present in capabilities if present]
        status = self.status | (0x10 if there else 0)
        struct.pack_into("<HHHH", raw, 0, self.vendor, self.device, self.command, status)
        struct.pack_into("<I", raw, 8, self.class_code << 8 | self.revision)
        raw[0x0E] = self.header_type
        struct.pack_into("<HH", raw, 0x2C, *self.subsystem)
        raw[0x34] = 0x50 if there else 0
        raw[0x3C], raw[0x3D] = self.irq & 0xFF, self.pin
        for index, number in enumerate(there):
            at = 0x50 + 0x10 * index
            raw[at], raw[at + 1] = number, at + 0x10 if index + 1 < len(there) else 0
            enabled = 0x8000 if number == 0x11 else 0x0001
            struct.pack_into("<H", raw, at + 2, enabled if self.msi_enabled else 0)
        return bytes(raw)


class FakeTree:
    """A directory with ``sys``, ``proc``, ``dev`` and ``etc`` of a machine. What is not described is not there."""

    def __init__(self, path: Path, *, populate: bool = True) -> None:
        self.path = path
        self.root = HostRoot(path)
        if not populate:
            return
        for name in (
            "sys/bus/pci/devices",
            "sys/bus/pci/drivers",
            "sys/kernel/irq",
            "proc/irq",
            "sys/class/iommu",
            "dev",
        ):
            (path / name).mkdir(parents=True, exist_ok=True)
        self.write("proc/sys/kernel/osrelease", "6.1.0-40-amd64\n")
        self.write("proc/cmdline", "quiet\n")
        self.write("dev/kvm", "")
        self.interrupts({})
        self.write("sys/bus/pci/drivers_probe", "")

    def write(self, name: str, text: str | bytes) -> Path:
        """Put a file into the tree."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def swap(self, name: str, text: str) -> None:
        """Like :meth:`write`, in one step: for a file that somebody may read at the same moment."""
        self.write(f"{name}.new", text).rename(self.path / name)

    def link(self, name: str, target: str) -> None:
        """Make the symbolic link *name* to *target*, another name of the tree."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(self.path / target)

    def module(self, name: str, **parameters: str) -> None:
        """A loaded module."""
        (self.path / "sys/module" / name / "parameters").mkdir(parents=True, exist_ok=True)
        for key, value in parameters.items():
            self.write(f"sys/module/{name}/parameters/{key}", value + "\n")

    def driver(self, name: str) -> None:
        """A PCI driver that is registered."""
        for file in ("bind", "unbind", "new_id"):
            self.write(f"sys/bus/pci/drivers/{name}/{file}", "")

    def directory(self, bdf: str) -> Path:
        """The real directory of a function."""
        return (self.path / "sys/bus/pci/devices" / bdf).resolve()

    def add(self, function: FakeFunction) -> None:
        """Make a function's directory, with its driver bound and its group joined."""
        above = [] if function.parent is None else [function.parent]
        place = "/".join(["sys/devices/pci" + function.bdf[:7], *above, function.bdf])
        (self.path / place).mkdir(parents=True)
        self.link(f"sys/bus/pci/devices/{function.bdf}", place)
        files: dict[str, str | bytes] = {
            "config": function.config(),
            "irq": f"{function.irq}\n",
            "enable": f"{function.enable}\n",
            "driver_override": f"{function.override or '(null)'}\n",
            "power_state": function.power + "\n",
            "msi_bus": "1\n",
            "reset_method": "flr\n",
            **{name: text + "\n" for name, text in function.extra.items()},
        }
        for name, content in files.items():
            self.write(f"{place}/{name}", content)
        for name in (*function.directories, *(f"net/{name}" for name in function.net)):
            (self.path / place / name).mkdir(parents=True)
        for vector in function.msi_vectors:
            self.write(f"{place}/msi_irqs/{vector}", "msix\n" if function.msix else "msi\n")
        self._join_group(function, place)
        self.uevent(function)
        if function.driver:
            self.driver(function.driver)
            self.link(f"{place}/driver", f"sys/bus/pci/drivers/{function.driver}")

    def _join_group(self, function: FakeFunction, place: str) -> None:
        if function.group is None:
            return
        self.link(f"sys/kernel/iommu_groups/{function.group}/devices/{function.bdf}", place)
        self.link(f"{place}/iommu_group", f"sys/kernel/iommu_groups/{function.group}")
        (self.path / "sys/class/iommu/dmar0").mkdir(parents=True, exist_ok=True)

    def uevent(self, function: FakeFunction, driver: str | None = None) -> None:
        """Write a function's uevent file, as the kernel would make it up with that driver."""
        name = function.driver if driver is None else driver
        lines = [f"DRIVER={name}"] if name else []
        lines.append(f"PCI_CLASS={function.class_code:X}")
        lines.append(f"PCI_ID={function.vendor:04X}:{function.device:04X}")
        lines.append(f"PCI_SUBSYS_ID={function.subsystem[0]:04X}:{function.subsystem[1]:04X}")
        lines.append(f"PCI_SLOT_NAME={function.bdf}")
        (self.directory(function.bdf) / "uevent").write_text("\n".join(lines) + "\n")

    def interrupts(self, lines: dict[int, tuple[int, str, str]], *, cpus: int = 2) -> None:
        """Write /proc/interrupts and each line's files: IRQ -> (count, chip and flow, handlers joined by ", ")."""
        header = " " * 11 + "".join(f"CPU{cpu}       " for cpu in range(cpus))
        rows = []
        for irq, (count, chip, actions) in lines.items():
            counts = "".join(f"{count if cpu == 0 else 0:>10} " for cpu in range(cpus))
            rows.append(f"{irq:>3}: {counts} {chip}      {actions}")
            self.write(f"sys/kernel/irq/{irq}/actions", actions.replace(", ", ",") + "\n")
            self.write(f"proc/irq/{irq}/spurious", f"count {count}\nunhandled 0\nlast_unhandled 0 ms\n")
        rows.append("NMI:          0          0   Non-maskable interrupts")
        self.swap("proc/interrupts", "\n".join((header, *rows)) + "\n")

    def process(self, pid: int, comm: str, open_files: Iterable[str] = ()) -> None:
        """A process with these files open."""
        self.write(f"proc/{pid}/comm", comm + "\n")
        (self.path / f"proc/{pid}/fd").mkdir(parents=True, exist_ok=True)
        for number, target in enumerate(open_files, start=3):
            (self.path / f"proc/{pid}/fd/{number}").symlink_to(target)
