"""What is known of a line and of who is on it, where sysfs says little or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeFunction
from vfio_intx.chain.finding import Severity
from vfio_intx.cli.scan import unknown_facts
from vfio_intx.diagnose.prediction import predict
from vfio_intx.diagnose.rules import codes
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf

NIC = Bdf.parse("0000:00:10.0")


def test_a_line_that_msi_hides_is_known_from_a_neighbour_on_the_same_wire(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, irq=40, msi=True, msi_enabled=True, msi_vectors=(40,)).tree
    tree.add(FakeFunction("0000:00:10.1", pin=1, driver="snd", group=4, irq=20))
    tree.add(FakeFunction("0000:00:10.2", pin=2, driver="x", group=4, irq=23))
    tree.interrupts({20: (1, "IO-APIC  20-fasteoi", "snd"), 23: (1, "IO-APIC  23-fasteoi", "x")})
    snapshot = take_snapshot(tree.root)
    assert predict(snapshot.function(NIC), snapshot).subject.irq == 20


def test_cards_behind_two_root_ports_are_not_taken_to_share_a_line(tmp_path: Path) -> None:
    """By the swizzle alone both would arrive at pin A of slot 1c; an Intel hub turns the second port's A into B."""
    tree = nic_host(tmp_path).tree
    for number, irq in ((0, 16), (1, 40)):
        port = f"0000:00:1c.{number}"
        tree.add(FakeFunction(port, class_code=0x060400, header_type=1, pin=number + 1, irq=0, driver="pcieport"))
        msi = {"msi": True, "msi_enabled": True, "msi_vectors": (40,)} if number else {}
        behind = {"parent": port, "driver": "x", "group": 9 + number, "irq": irq, **msi}
        tree.add(FakeFunction(f"0000:0{2 + number}:00.0", **behind))  # type: ignore[arg-type]
    snapshot = take_snapshot(tree.root)
    subject = predict(snapshot.function(Bdf.parse("03:00.0")), snapshot).subject
    assert (subject.irq, subject.neighbours) == (None, ())


def test_a_function_that_nobody_enabled_has_no_line_yet(tmp_path: Path) -> None:
    """Its irq is what the firmware wrote for another interrupt controller; IRQ 11 belongs to somebody else."""
    tree = nic_host(tmp_path, vendor=0x1B7C, device=0x0004, irq=11, enable=0, driver="").tree
    tree.interrupts({11: (7, "IO-APIC  11-fasteoi", "acpi")})
    tree.write("dev/kmsg", "")
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert (prediction.subject.irq, prediction.subject.handlers) == (None, ())
    assert (prediction.severity, codes(prediction.findings)) == (Severity.UNKNOWN, ("INTX023",))
    enable = f"/sys/bus/pci/devices/{NIC}/enable"
    assert prediction.findings[0].remedy == f"echo 1 > {enable} && echo 0 > {enable} && vfio-intx check {NIC}"
    assert "firmware" in unknown_facts(prediction)["irq"]


def test_a_line_that_msi_hides_is_unknown_where_it_matters(tmp_path: Path) -> None:
    card = {"vendor": 0x15B3, "device": 0x1003, "msi": True, "msi_enabled": True, "msi_vectors": (40,), "irq": 40}
    tree = nic_host(tmp_path, **card).tree
    tree.write("dev/kmsg", "")
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert (prediction.severity, prediction.ready) == (Severity.UNKNOWN, False)
    assert prediction.findings[0].remedy == f"vfio-intx bind {NIC} && vfio-intx check {NIC}"


def test_a_card_that_shares_is_not_held_up_by_an_unknown_line(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, irq=11, enable=0, driver="").tree
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert prediction.ready
    assert "not known yet" in prediction.outlook[0]
    assert "alone" not in prediction.outlook[0]


def test_a_function_that_was_enabled_once_keeps_its_line(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, vendor=0x1B7C, device=0x0004, irq=11, enable=0, driver="vfio-pci").tree
    tree.write(f"sys/bus/pci/devices/{NIC}/irq", "17\n")
    tree.interrupts({17: (7, "IO-APIC  17-fasteoi", "ehci_hcd:usb1")})
    tree.write("dev/kmsg", "")
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert (prediction.subject.irq, "INTX001" in codes(prediction.findings)) == (17, True)


def test_a_disguised_msi_vector_255_is_no_line(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, irq=255).tree
    tree.interrupts({255: (7, "PCI-MSI 1-edge", "nvme0q3")})
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert prediction.subject.handlers == ()
    assert "INTX014" in codes(prediction.findings)


def test_an_unprivileged_reader_is_told_what_is_unknown_and_not_no(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, vendor=0x15B3, device=0x1013).tree
    snapshot = take_snapshot(tree.root)
    assert not snapshot.log.is_known
    prediction = predict(snapshot.function(NIC), snapshot)
    assert (prediction.severity, prediction.ready) == (Severity.UNKNOWN, False)


@pytest.mark.parametrize(
    ("by_parameter", "remedy"), [(True, "modprobe vfio-pci nointxmask=0"), (False, "another slot")]
)
def test_a_neighbour_that_the_host_lives_on_is_never_told_to_go(
    tmp_path: Path, by_parameter: bool, remedy: str
) -> None:
    broken = {} if by_parameter else {"vendor": 0x15B3, "device": 0x1003}
    tree = nic_host(tmp_path, driver="vfio-pci", **broken).tree
    if by_parameter:
        tree.module("vfio_pci", nointxmask="Y")
    tree.add(FakeFunction("0000:00:17.0", class_code=0x010601, driver="ahci", group=9, irq=21))
    tree.write("sys/devices/pci0000:00/0000:00:17.0/ata1/block/sda/dev", "8:0\n")
    tree.link("sys/class/block/sda", "sys/devices/pci0000:00/0000:00:17.0/ata1/block/sda")
    tree.write("proc/self/mountinfo", "29 1 8:0 / / rw - ext4 /dev/sda rw\n")
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", "ahci[0000:00:17.0]")})
    snapshot = take_snapshot(tree.root)
    (finding,) = [f for f in predict(snapshot.function(NIC), snapshot).findings if f.code == "INTX001"]
    assert "unbind" not in (finding.remedy or "")
    assert remedy in (finding.remedy or "")
    assert any("0000:00:17.0 cannot move: it holds / (sda)" in item for item in finding.evidence)


@pytest.mark.parametrize(
    ("fields", "handlers", "others"),
    [
        ({"net": ("enp0s16",)}, "eth0", ()),
        ({"driver": "vfio-pci"}, "eth0", ("eth0",)),
        ({"driver": "serial"}, "ttyS4, ehci_hcd:usb1", ("ehci_hcd:usb1",)),
        ({"driver": "ahci"}, "ahci[0000:00:10.0], ahci[0000:00:11.0]", ("ahci[0000:00:11.0]",)),
        ({"driver": "ehci-pci", "directories": ("usb1",)}, "ehci_hcd:usb1, ehci_hcd:usb2", ("ehci_hcd:usb2",)),
        ({"driver": "snd_hda_intel"}, "snd_hda_intel:card0, eth0", ("eth0",)),
    ],
)
def test_a_card_s_own_handlers_are_not_counted_as_others(
    tmp_path: Path, fields: dict[str, object], handlers: str, others: tuple[str, ...]
) -> None:
    tree = nic_host(tmp_path, **fields).tree
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", handlers)})
    snapshot = take_snapshot(tree.root)
    assert predict(snapshot.function(NIC), snapshot).subject.handlers == others


@pytest.mark.parametrize(
    ("driver", "handlers", "other"),
    [
        ("snd_ens1371", "snd_ens1371, snd_ens1371", "snd_ens1371"),
        ("snd_hda_intel", "snd_hda_intel:card0, snd_hda_intel:card1", "snd_hda_intel:card1"),
        # One action serves all ports of a line (serial_link_irq_chain in drivers/tty/serial/8250/8250_core.c).
        ("serial", "ttyS4", "ttyS4"),
    ],
)
def test_the_handler_of_a_twin_on_the_same_line_is_not_taken_for_the_card_s_own(
    tmp_path: Path, driver: str, handlers: str, other: str
) -> None:
    tree = nic_host(tmp_path, driver=driver).tree
    tree.add(FakeFunction("0000:00:11.0", driver=driver, group=5, irq=21))
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", handlers)})
    tree.module("vfio_pci", nointxmask="Y")
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert prediction.subject.handlers == (other,)
    (finding,) = [f for f in prediction.findings if f.code == "INTX001"]
    assert finding.remedy == f"echo 0000:00:11.0 > /sys/bus/pci/drivers/{driver}/unbind"


def test_a_group_that_cannot_be_read_is_unknown_and_not_absent(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, group=None).tree
    (tree.directory(str(NIC)) / "iommu_group").mkdir()  # no link: EINVAL
    snapshot = take_snapshot(tree.root)
    (finding,) = predict(snapshot.function(NIC), snapshot).findings
    assert (finding.code, finding.severity) == ("INTX024", Severity.UNKNOWN)
    assert "could not be read" in finding.summary
    assert finding.remedy is None


def test_a_member_whose_driver_cannot_be_read_leaves_the_group_unknown(tmp_path: Path) -> None:
    tree = nic_host(tmp_path).tree
    tree.add(FakeFunction("0000:00:10.1", driver="snd", group=4, irq=22))
    (tree.directory("0000:00:10.1") / "uevent").unlink()
    snapshot = take_snapshot(tree.root)
    (finding,) = predict(snapshot.function(NIC), snapshot).findings
    assert (finding.code, finding.severity) == ("INTX025", Severity.UNKNOWN)
    assert "0000:00:10.1/uevent: No such file" in finding.evidence[0]
