"""The lab itself: L1 comes up, a guest boots, a card is hot-plugged through vfio-pci and answers pings."""

from __future__ import annotations

import time
from pathlib import Path

from vfio_intx.errors import VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.echoes import Echoes
from vfio_intx.lab.guests import Guest
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import Card, LabSpec, UserNetwork
from vfio_intx.lab.traffic import ANSWER_S

NETWORK = UserNetwork()
NIC = Card("e1000", 0x10, backend=NETWORK)
SPEC = LabSpec(kernels.DEFAULT, (NIC,))

_PINGS = 5


def inside(context: Context) -> dict[str, object]:
    """Count the groups, boot a guest, give it the card by hand, ping the card's network."""
    groups = len(list(Path("/sys/kernel/iommu_groups").iterdir()))
    context.say(f"L1 is up with {groups} IOMMU groups")
    bind_by_hand(context)
    begun = time.monotonic()
    with Guest.start() as guest:
        guest_boot_s = time.monotonic() - begun
        context.say(f"the guest booted in {guest_boot_s:.1f} s")
        guest.execute("device_add", driver="vfio-pci", host=str(NIC.bdf), id="nic")
        guest.load("e1000")
        interface = guest.wait_interface()
        context.say(f"the guest has {interface}")
        guest.check(f"ip addr add {NETWORK.address} dev {interface} && ip link set {interface} up")
        echoes = Echoes(guest)
        pings = guest.run(f"ping -c {_PINGS} -i 0.2 -W {ANSWER_S} {NETWORK.gateway}").text
        _, received = echoes.settled(ANSWER_S)
        interrupts = guest.interrupt_count(interface)
    context.say(f"{received} of {_PINGS} pings, {interrupts} interrupts in the guest")
    if received < _PINGS or interrupts == 0:
        raise VerifyError(f"the guest got {received} of {_PINGS} answers and {interrupts} interrupts: {pings[-300:]}")
    return {"iommu_groups": groups, "guest_boot_s": guest_boot_s, "pings": received, "guest_interrupts": interrupts}


def bind_by_hand(context: Context) -> None:
    """Give the card to vfio-pci with plain writes, so that the lab can be tried without the product."""
    device = Path(f"/sys/bus/pci/devices/{NIC.bdf}")
    if (device / "driver").exists():
        (device / "driver" / "unbind").write_text(str(NIC.bdf), "ascii")
    (device / "driver_override").write_text("vfio-pci", "ascii")
    Path("/sys/bus/pci/drivers_probe").write_text(str(NIC.bdf), "ascii")
    context.say(f"{NIC.bdf} is with {(device / 'driver').resolve().name}")
