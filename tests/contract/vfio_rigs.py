"""What the contract of a VFIO INTx line is held against: the fake, and vfio-pci with a card in the lab."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.fakes.vfio_device import FakeVfioDevice
from tests.lab.specs import TWIN
from vfio_intx.abi import vfio
from vfio_intx.abi.pciconf import ConfigSpace
from vfio_intx.deadline import Deadline
from vfio_intx.host.irq import read_interrupts, vfio_action
from vfio_intx.host.root import HostRoot
from vfio_intx.microvm.cards import Card, CardAsserter, card_for
from vfio_intx.names import Bdf
from vfio_intx.wiring.device_files import open_device

_E1000 = (0x8086, 0x100E)


class RegionRegisters:
    """A card's registers through the device file."""

    def __init__(self, device: vfio.Device, bar: int) -> None:
        self._device, self._region = device, device.region_info(bar)

    def read(self, offset: int) -> int:
        return int.from_bytes(self._device.read(self._region, offset, 4), "little")

    def write(self, offset: int, value: int) -> None:
        self._device.write(self._region, offset, value.to_bytes(4, "little"))


class Rig(Protocol):
    """A function whose card can be made to assert, with two views on it that do not go through VFIO."""

    @property
    def device(self) -> vfio.Device: ...

    @property
    def card(self) -> CardAsserter: ...

    def quiet(self) -> int:
        """Read the cause, which clears it."""

    def physical(self) -> ConfigSpace:
        """The function's own configuration space."""

    def host_interrupts(self) -> int:
        """What the host counted on the line so far. Only while INTx is on."""


class _Registers:
    def __init__(self, device: vfio.Device) -> None:
        found = card_for(*_E1000)
        assert found is not None
        self._file: Card = found
        self._registers = RegionRegisters(device, found.bar)
        self._card = CardAsserter(found, self._registers)
        self._card.prepare()

    @property
    def card(self) -> CardAsserter:
        return self._card

    def quiet(self) -> int:
        return self._registers.read(self._file.status)


class FakeRig(_Registers):
    def __init__(self, fake: FakeVfioDevice) -> None:
        super().__init__(fake)
        self._fake = fake

    @property
    def device(self) -> vfio.Device:
        return self._fake

    def physical(self) -> ConfigSpace:
        return self._fake.physical_config()

    def host_interrupts(self) -> int:
        return self._fake.host_irqs


class RealRig(_Registers):
    def __init__(self, device: vfio.DeviceFile) -> None:
        super().__init__(device)
        self._device = device

    @property
    def device(self) -> vfio.Device:
        return self._device

    def physical(self) -> ConfigSpace:
        return ConfigSpace((HostRoot().pci_device(TWIN.bdf) / "config").read_bytes())

    def host_interrupts(self) -> int:
        wanted = vfio_action(TWIN.bdf)
        lines = (read_interrupts(HostRoot()).value or {}).values()
        return sum(line.count for line in lines if wanted in line.actions)


@contextmanager
def fake_rig() -> Iterator[Rig]:
    with FakeVfioDevice() as fake:
        yield FakeRig(fake)


@contextmanager
def real_rig() -> Iterator[Rig]:
    """The lab's second NIC, with vfio-pci for as long as this is open, and back with its driver afterwards."""
    with given_away(TWIN.bdf), open_device(HostRoot(), TWIN.bdf) as opened:
        opened.enable_memory()
        yield RealRig(opened.device)


@contextmanager
def given_away(bdf: Bdf) -> Iterator[None]:
    """A function of L1 with vfio-pci, and back with its driver afterwards."""
    device = Path(f"/sys/bus/pci/devices/{bdf}")
    _move(device, "vfio-pci")
    try:
        yield
    finally:
        _move(device, "")


def _move(device: Path, override: str) -> None:
    (device / "driver_override").write_text(f"{override}\n")
    if (device / "driver").exists():
        (device / "driver" / "unbind").write_text(device.name)
    Path("/sys/bus/pci/drivers_probe").write_text(device.name)
    assert Deadline.after("driver to be bound", 60).poll((device / "driver").exists)
