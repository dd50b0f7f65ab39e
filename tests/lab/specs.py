"""The lab hosts that tests of the marker ``l1`` may name."""

from __future__ import annotations

from vfio_intx.lab.spec import Card, LabSpec, SerialSocket, UserNetwork

#: A NIC and a serial card on lines of their own, a second NIC on the first one's line, a card behind a bridge.
NIC = Card("e1000", 0x10, backend=UserNetwork(2), name="nic")
SERIAL = Card("pci-serial", 0x11, backend=SerialSocket("serial"), name="serial-card")
BRIDGE = Card("pci-bridge", 0x12, ("chassis_nr=1",), name="bridge")
EDU = Card("edu", 0x01, bus="bridge", name="edu")
TWIN = Card("e1000", 0x14, backend=UserNetwork(3), name="twin")
SIBLINGS = tuple(Card("e1000", slot, bus="bridge", name=f"sibling-{slot}") for slot in (1, 2))

SPECS: dict[str, LabSpec] = {
    "default": LabSpec("6.12", (NIC, SERIAL, BRIDGE, EDU, TWIN)),
    # vfio-pci believes that no card can mask its own interrupt: what a card from before PCI 2.3 looks like.
    "nointxmask": LabSpec("6.12", (NIC, SERIAL), kernel_arguments=("vfio_pci.nointxmask=1",)),
    # The same, with a second NIC of the host on the first one's line.
    "shared": LabSpec("6.12", (NIC, TWIN), kernel_arguments=("vfio_pci.nointxmask=1",)),
    # Two NICs behind a conventional bridge: the IOMMU cannot tell them apart, so they are one group.
    "group": LabSpec("6.12", (BRIDGE, *SIBLINGS)),
}
