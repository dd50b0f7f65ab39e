"""The plan: a kernel's driver core over a fake tree.

Imitated, after drivers/base/bus.c, dd.c and drivers/pci/pci-driver.c, pci-sysfs.c:

    devices/BDF/driver_override   any name, empty line clears; "(null)" where none
    drivers/NAME/unbind           a BDF; ENODEV if that driver does not have it
    drivers/NAME/bind             a BDF; ENODEV if the driver does not match it, EBUSY if it has a driver
    drivers_probe                 a BDF; EINVAL if there is none; succeeds also if no driver took it
    modprobe                      registers a driver, which then probes every function without one

The state is the tree itself, so that it survives the process, and several fakes may work on one tree.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from enum import Flag, auto
from pathlib import Path

from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, MissingError
from vfio_intx.host.root import HostRoot
from vfio_intx.wiring.apply import StuckWrite
from vfio_intx.wiring.steps import Write


class Fail(Flag):
    """How a driver or a file may misbehave."""

    NONE = 0
    PROBE = auto()
    """The driver's probe fails: the write succeeds all the same, and nobody has the function."""
    UNBIND_HANGS = auto()
    """The driver's remove does not return."""
    UNBIND_ERROR = auto()
    """The write to unbind answers EIO."""
    OVERRIDE_ERROR = auto()
    """The write to driver_override answers EPERM (lockdown)."""
    GONE_AFTER_UNBIND = auto()
    """The function vanishes when its driver lets go."""


@dataclass
class FakeKernel:
    """A :class:`vfio_intx.wiring.apply.Machine` over a fake tree.

    :ivar matches: for each function, the drivers that match it by its ids, in the order the kernel tries them.
    :ivar fails: for each driver (or ``override``) its failure bits.
    :ivar loadable: modules that modprobe finds, which are also the names of their PCI drivers.
    :ivar log: every write and module load, as ``--dry-run`` would print it.
    """

    tree: FakeTree
    matches: dict[str, list[str]] = field(default_factory=dict)
    fails: dict[str, Fail] = field(default_factory=dict)
    loadable: set[str] = field(default_factory=lambda: {"vfio-pci"})
    log: list[str] = field(default_factory=list)
    is_root: bool = True

    @property
    def root(self) -> HostRoot:
        """The tree's."""
        return self.tree.root

    def may_change(self) -> bool:
        """Whether it plays a process of root."""
        return self.is_root

    def load_module(self, name: str, deadline: Deadline) -> None:
        """As modprobe would: the driver registers, and takes what matches it and has no driver."""
        self.log.append(f"+ modprobe {name}")
        if name not in self.loadable:
            raise MissingError(f"the kernel module {name} cannot be loaded: Module {name} not found")
        self.tree.driver(name)
        for device in sorted((self.tree.path / "sys/bus/pci/devices").iterdir()):
            if not (device / "driver").is_symlink():
                self._probe(device.name)

    def write(self, write: Write, deadline: Deadline) -> None:
        """As the kernel would take the write; anything else than the four files above is EACCES."""
        self.log.append(str(write))
        parts = write.path.split("/")
        if parts[:5] == ["", "sys", "bus", "pci", "devices"] and parts[6:] == ["driver_override"]:
            self._override(parts[5], write)
        elif write.path == "/sys/bus/pci/drivers_probe":
            if not self._there(write.text):
                raise KernelError("write", write.path, errno.EINVAL)
            if not self.driver_of(write.text):
                self._probe(write.text)
        elif parts[:5] == ["", "sys", "bus", "pci", "drivers"] and parts[6:] == ["unbind"]:
            self._unbind(parts[5], write)
        elif parts[:5] == ["", "sys", "bus", "pci", "drivers"] and parts[6:] == ["bind"]:
            self._bind(parts[5], write)
        else:
            raise KernelError("write", write.path, errno.EACCES)

    def driver_of(self, bdf: str) -> str:
        """The driver that has the function, empty for none."""
        link = self.tree.path / "sys/bus/pci/devices" / bdf / "driver"
        return link.readlink().name if link.is_symlink() else ""

    def override_of(self, bdf: str) -> str:
        """The function's driver_override, empty for none."""
        text = (self.tree.directory(bdf) / "driver_override").read_text().strip()
        return "" if text == "(null)" else text

    def state(self, bdf: str) -> tuple[str, str]:
        """Driver and override."""
        return self.driver_of(bdf), self.override_of(bdf)

    def remove(self, bdf: str) -> None:
        """Take the function out, as a hand at the slot would."""
        (self.tree.path / "sys/bus/pci/devices" / bdf).unlink()

    def _there(self, bdf: str) -> bool:
        return (self.tree.path / "sys/bus/pci/devices" / bdf).exists()

    def _fails(self, name: str, how: Fail) -> bool:
        return bool(self.fails.get(name, Fail.NONE) & how)

    def _override(self, bdf: str, write: Write) -> None:
        if not self._there(bdf):
            raise KernelError("write", write.path, errno.ENOENT)
        if self._fails("override", Fail.OVERRIDE_ERROR):
            raise KernelError("write", write.path, errno.EPERM)
        (self.tree.directory(bdf) / "driver_override").write_text((write.text or "(null)") + "\n")

    def _unbind(self, driver: str, write: Write) -> None:
        if not self._there(write.text) or self.driver_of(write.text) != driver:
            raise KernelError("write", write.path, errno.ENODEV)
        if self._fails(driver, Fail.UNBIND_HANGS):
            raise StuckWrite("write", write.path, errno.ETIMEDOUT)
        if self._fails(driver, Fail.UNBIND_ERROR):
            raise KernelError("write", write.path, errno.EIO)
        self._set_driver(write.text, "")
        if self._fails(driver, Fail.GONE_AFTER_UNBIND):
            self.remove(write.text)

    def _bind(self, driver: str, write: Write) -> None:
        if not self._there(write.text) or driver not in self._candidates(write.text):
            raise KernelError("write", write.path, errno.ENODEV)
        if self.driver_of(write.text):
            raise KernelError("write", write.path, errno.EBUSY)
        if self._fails(driver, Fail.PROBE):
            raise KernelError("write", write.path, errno.EIO)
        self._set_driver(write.text, driver)

    def _candidates(self, bdf: str) -> list[str]:
        override = self.override_of(bdf)
        return [override] if override else self.matches.get(bdf, [])

    def _probe(self, bdf: str) -> None:
        for driver in self._candidates(bdf):
            if (self.tree.path / "sys/bus/pci/drivers" / driver).is_dir() and not self._fails(driver, Fail.PROBE):
                self._set_driver(bdf, driver)
                return

    def _set_driver(self, bdf: str, driver: str) -> None:
        directory = self.tree.directory(bdf)
        lines = [line for line in (directory / "uevent").read_text().splitlines() if not line.startswith("DRIVER=")]
        (directory / "driver").unlink(missing_ok=True)
        if driver:
            (directory / "driver").symlink_to(self.tree.path / "sys/bus/pci/drivers" / driver)
            lines.insert(0, f"DRIVER={driver}")
        replacement = directory / ".uevent"
        replacement.write_text("\n".join(lines) + "\n")
        replacement.rename(directory / "uevent")


def save(kernel: FakeKernel, path: Path) -> None:
    """Write down what the tree itself does not tell, for :func:`load` in another process."""
    path.write_text(json.dumps({"tree": str(kernel.tree.path), "matches": kernel.matches}))


def load(path: Path) -> FakeKernel:
    """The kernel over a tree that another process made."""
    saved = json.loads(path.read_text())
    return FakeKernel(FakeTree(Path(saved["tree"]), populate=False), matches=saved["matches"])


def nic_host(path: Path, **changes: object) -> FakeKernel:
    """A host with one e1000 alone in its group, on IRQ 21; *changes* are fields of its :class:`FakeFunction`."""
    tree = FakeTree(path)
    tree.driver("e1000")
    fields: dict[str, object] = {"bdf": "0000:00:10.0", "driver": "e1000", "group": 4, "irq": 21, **changes}
    function = FakeFunction(**fields)  # type: ignore[arg-type]
    tree.add(function)
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", "eth0")})
    return FakeKernel(tree, matches={function.bdf: ["e1000"]})
