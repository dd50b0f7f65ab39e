"""What the rules rest on: the kernel log, snapshots, the list of broken cards."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeTree
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.prediction import predict
from vfio_intx.diagnose.rules import codes
from vfio_intx.diagnose.subject import VmFacts
from vfio_intx.errors import UsageError
from vfio_intx.host import quirks
from vfio_intx.host.log import flags_mismatches, nobody_cared, parse_log
from vfio_intx.host.replay import from_bytes, read_snapshot, to_bytes
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf

TREE = Path(__file__).parents[2]
NIC = Bdf.parse("0000:00:10.0")


REAL_LINES = (
    "genirq: Flags mismatch irq 16. 00000000 (vfio-intx(0000:08:00.0)) vs. 00000080 (ehci_hcd:usb3)",
    "genirq: Flags mismatch irq 16. 00000000 (vfio-intx(0000:03:00.0)) vs. 00000000 (vfio-intx(0000:04:00.0))",
    "genirq: Flags mismatch irq 16. 00200000 (vfio-intx(0000:01:00.4)) vs. 00200080 (hpilo)",
)


def test_the_real_mismatch_lines_are_read_as_hexadecimal_flags() -> None:
    found = flags_mismatches(parse_log("\n".join(REAL_LINES)))
    assert [(seen.asked_shared, seen.holder_shared) for seen in found] == [(False, True), (False, False), (False, True)]
    assert [seen.holder for seen in found] == ["ehci_hcd:usb3", "vfio-intx(0000:04:00.0)", "hpilo"]


def test_a_log_in_the_form_of_kmsg_and_in_that_of_dmesg_is_the_same_log() -> None:
    kmsg = "3,900,12500000,-;irq 16: nobody cared\n SUBSYSTEM=pci\n3,901,12500001,-;[<00aa>] usb_hcd_irq\n"
    dmesg = "[   12.500000] irq 16: nobody cared\n[   12.500001] [<00aa>] usb_hcd_irq\n"
    assert parse_log(kmsg) == parse_log(dmesg)
    (seen,) = nobody_cared(parse_log(kmsg))
    assert (seen.irq, seen.at, seen.handlers) == (16, 12.5, ("usb_hcd_irq",))


@given(st.text(max_size=400))
def test_no_log_makes_the_parser_fail(text: str) -> None:
    for hay in (text, f"irq 16: nobody cared {text}\n[<{text}", f"1,2,3,-;genirq: Flags mismatch irq {text}"):
        lines = parse_log(hay)
        assert all(line.text.isprintable() for line in lines)
        flags_mismatches(lines)
        nobody_cared(lines)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[" * 100000, b'{"schema": "vfio-intx/snapshot/2"}', b"\xff\xfe"])
def test_a_file_that_holds_no_snapshot_is_a_usage_error(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(UsageError, match="holds no snapshot"):
        read_snapshot(tmp_path / "file")


def test_a_snapshot_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    raw = to_bytes(take_snapshot(nic_host(tmp_path).tree.root)).replace(b"snapshot/1", b"snapshot/2")
    with pytest.raises(UsageError, match="snapshot/2"):
        from_bytes(raw, "x")


KERNEL = {
    "Makefile": "VERSION = 9\nPATCHLEVEL = 1\nSUBLEVEL = 2\nEXTRAVERSION =\n",
    "include/linux/pci_ids.h": """
#define PCI_VENDOR_ID_INTEL 0x8086
#define PCI_VENDOR_ID_MELLANOX 0x15b3
#define PCI_DEVICE_ID_MELLANOX_ONE 0x0001
#define PCI_DEVICE_ID_MELLANOX_CONNECTX4 0x1013
""",
    "drivers/pci/quirks.c": """
DECLARE_PCI_FIXUP_FINAL(0x1814, 0x0601, /* a card, with a comma */
                        quirk_broken_intx_masking);
/* DECLARE_PCI_FIXUP_FINAL(0xdead, 0x0001, quirk_broken_intx_masking); */
static u16 mellanox_broken_intx_devs[] = {
        PCI_DEVICE_ID_MELLANOX_ONE,
};
static void mellanox_check_broken_intx_masking(struct pci_dev *pdev)
{
        if (pdev->device != PCI_DEVICE_ID_MELLANOX_CONNECTX4) {
                return;
        }
}
""",
    "drivers/vfio/pci/vfio_pci_core.c": """
static bool vfio_pci_nointx(struct pci_dev *pdev)
{
        switch (pdev->vendor) {
        case PCI_VENDOR_ID_INTEL:
                switch (pdev->device) {
                case 0x1572:
                case 0x1580 ... 0x1582:
                        return true;
                }
        }
}
""",
}


def test_the_list_of_broken_cards_is_read_from_the_kernels_source(tmp_path: Path) -> None:
    for name, text in KERNEL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = [sys.executable, str(TREE / "tools/gen-quirks"), "--source", str(tmp_path)]
    made: dict[str, object] = {}
    exec(subprocess.run(command, check=True, capture_output=True, text=True).stdout, made)
    assert made["SOURCE"] == "Linux 9.1.2"
    assert made["BROKEN"] == {(0x1814, 0x0601), (0x15B3, 0x0001)}
    assert made["BROKEN_BY_FIRMWARE"] == {(0x15B3, 0x1013)}
    assert made["HIDDEN"] == {(0x8086, 0x1572), (0x8086, 0x1580), (0x8086, 0x1581), (0x8086, 0x1582)}


def test_the_list_has_the_cards_that_are_known_from_the_field() -> None:
    assert re.fullmatch(r"Linux \d+\.\d+\.\d+.*", quirks.SOURCE)
    assert {(0x1102, 0x000B), (0x15B3, 0x1003), (0x15B3, 0x1007), (0x10EC, 0x8169)} <= quirks.BROKEN
    assert (0x8086, 0x1563) in quirks.HIDDEN


def test_nointxmask_comes_before_the_list_of_hidden_cards(tmp_path: Path) -> None:
    """vfio_pci_core_enable() asks vfio_pci_nointx() only without it: the pin is then shown, and the line exclusive."""
    tree = nic_host(tmp_path, device=0x1572).tree
    tree.module("vfio_pci", nointxmask="Y")
    snapshot = take_snapshot(tree.root)
    assert predict(snapshot.function(NIC), snapshot).subject.verdict.masking is Masking.EXCLUSIVE


MISMATCH = f"genirq: Flags mismatch irq 21. 00000000 (vfio-intx({NIC})) vs. 00000080 (ehci_hcd:usb1)"


def masked(tree: FakeTree, changes: bool | None = None) -> Masking:
    snapshot = take_snapshot(tree.root)
    return predict(snapshot.function(NIC), snapshot, VmFacts(disintx_changes=changes)).subject.verdict.masking


def test_what_the_log_tells_of_a_time_with_nointxmask_is_not_held_against_a_card(tmp_path: Path) -> None:
    """The remedy for that (nointxmask=0) would otherwise never be seen to have helped."""
    tree = nic_host(tmp_path, driver="vfio-pci").tree
    tree.write("dev/kmsg", f"4,1,1000000,-;{MISMATCH}\n")
    assert masked(tree) is Masking.EXCLUSIVE
    # The kernel's own test is the same as ours.
    assert masked(tree, changes=True) is Masking.DISINTX
    # It has been granted a line that others are on.
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", f"vfio-intx({NIC}), ehci_hcd:usb1")})
    assert masked(tree) is Masking.DISINTX


def test_a_line_that_vfio_has_alone_proves_nothing(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, driver="vfio-pci").tree
    tree.write("dev/kmsg", f"4,1,1000000,-;{MISMATCH}\n")
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", f"vfio-intx({NIC})")})
    assert masked(tree) is Masking.EXCLUSIVE


@pytest.mark.parametrize(
    ("text", "bdf", "seen"),
    [
        ("vfio-pci {}: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e address=0x0 flags=0x0000]", str(NIC), True),
        ("AMD-Vi: Event logged [IO_PAGE_FAULT device={} domain=0x000e address=0x0 flags=0x0000]", str(NIC), True),
        ("AMD-Vi: Event logged [IO_PAGE_FAULT device=00:10.0 domain=0x000e address=0x0 flags=0x0000]", str(NIC), True),
        ("DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x0 [fault reason 0x05]", str(NIC), True),
        # The words of a segment's unit name no segment; what they mean there cannot be told.
        ("DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x0", "0001:00:10.0", False),
        ("vfio-pci 0001:00:10.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e]", str(NIC), False),
    ],
)
def test_the_words_of_an_iommu_that_refuses_dma(tmp_path: Path, text: str, bdf: str, seen: bool) -> None:
    tree = nic_host(tmp_path, bdf=bdf).tree
    tree.write("dev/kmsg", f"4,1,1000000,-;{text.format(bdf)}\n")
    snapshot = take_snapshot(tree.root)
    found = codes(predict(snapshot.function(Bdf.parse(bdf)), snapshot).findings)
    assert ("INTX020" in found) is seen
