"""Outside text into facts: /proc/interrupts of several configurations, spurious counts, configuration space."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.abi.pciconf import ConfigSpace
from vfio_intx.host.cpu import parse_cpuinfo, read_cpu
from vfio_intx.host.hwdb import hardware_name, udev_properties
from vfio_intx.host.irq import Spurious, parse_interrupts, read_actions, read_counts, read_spurious
from vfio_intx.host.pci import PciIds, list_functions
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf, HostIrq, Pin

TWO_CPUS = """           CPU0       CPU1
  0:         44          0   IO-APIC   2-edge      timer
 16:          3          4   IO-APIC  16-fasteoi   ehci_hcd:usb1, vfio-intx(0000:08:00.0), i801_smbus
 29:          0     285114  PCI-MSIX-0000:00:01.0   1-edge      virtio0-inflate
 31:          5          0  IR-IO-APIC   31-fasteoi
NMI:          0          0   Non-maskable interrupts
ERR:          0
"""
SHOW_LEVEL = """           CPU0
 27:   12345678     GICv3  27 Level     arch_timer
 50:          1     GICv3  82 Edge      a name with blanks
"""


def test_the_handlers_and_counts_of_a_shared_line() -> None:
    line = parse_interrupts(TWO_CPUS)[HostIrq(16)]
    assert line.actions == ("ehci_hcd:usb1", "vfio-intx(0000:08:00.0)", "i801_smbus")
    assert (line.per_cpu, line.count, line.chip) == ((3, 4), 7, "IO-APIC 16-fasteoi")


def test_a_line_without_handlers_and_one_of_msix() -> None:
    lines = parse_interrupts(TWO_CPUS)
    assert lines[HostIrq(31)].actions == ()
    assert lines[HostIrq(29)].chip == "PCI-MSIX-0000:00:01.0 1-edge"
    assert sorted(lines) == [0, 16, 29, 31]


def test_a_kernel_that_prints_the_trigger_in_its_own_column() -> None:
    lines = parse_interrupts(SHOW_LEVEL)
    assert lines[HostIrq(27)].actions == ("arch_timer",)
    assert lines[HostIrq(50)].actions == ("a name with blanks",)


@pytest.mark.parametrize(
    "text", ["", "\n", "CPU0\n 5:\n", "  CPU0 CPU1\n 5: 1\n", "  CPU0\n 5: -1 x\n", "no header\n 5: 1 x\n"]
)
def test_rows_that_make_no_sense_are_left_out(text: str) -> None:
    assert parse_interrupts(text) == {}


@given(st.text(max_size=300))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    parse_interrupts("  CPU0  CPU1\n" + text)
    parse_interrupts(text)


def test_no_byte_of_an_interface_s_name_moves_the_cursor(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", "eth\x1b[2J0")})
    assert parse_interrupts((tmp_path / "proc/interrupts").read_text())[HostIrq(21)].actions == ("eth\\x1b[2J0",)
    assert read_actions(tree.root, HostIrq(21)).value == ("eth\\x1b[2J0",)


def test_a_machine_with_a_column_for_each_of_512_cpus(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    tree.interrupts({irq: (irq, f"IO-APIC  {irq}-fasteoi", "x") for irq in range(16, 1040)}, cpus=512)
    assert (tmp_path / "proc/interrupts").stat().st_size > 1 << 22
    assert read_counts(tree.root, [HostIrq(1039)]) == {HostIrq(1039): 1039}


def test_spurious_counts(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    tree.write("proc/irq/16/spurious", "count 99999\nunhandled 42\nlast_unhandled 4294668516 ms\n")
    tree.write("proc/irq/17/spurious", "count 99999\n")
    assert read_spurious(tree.root, HostIrq(16)).value == Spurious(99999, 42)
    assert read_spurious(tree.root, HostIrq(17)).error == "not of the form 'count, unhandled, last_unhandled'"
    assert read_spurious(tree.root, HostIrq(18)).error == "No such file or directory"


def test_actions_and_counts(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    tree.interrupts(
        {21: (7, "IO-APIC  21-fasteoi", "eth0, vfio-intx(0000:00:10.0)"), 22: (0, "IO-APIC  22-fasteoi", "")}
    )
    assert read_actions(tree.root, HostIrq(21)).value == ("eth0", "vfio-intx(0000:00:10.0)")
    assert read_actions(tree.root, HostIrq(22)).value == ()
    assert read_counts(tree.root, [HostIrq(21), HostIrq(99)]) == {HostIrq(21): 7}


def test_a_configuration_space() -> None:
    config = ConfigSpace(FakeFunction("0000:00:10.0", msi=True, msix=True, command=0x0507, status=0x0008).config())
    assert (config.vendor, config.device, config.pin) == (0x8086, 0x100E, Pin.A)
    assert config.intx_disabled
    assert config.intx_asserted
    assert [number for number, _ in config.capabilities()] == [0x05, 0x11]
    assert not config.msi_enabled
    assert ConfigSpace(FakeFunction("0000:00:10.0", msix=True, msi_enabled=True).config()).msi_enabled


def test_all_ones_is_dead_and_has_no_pin_and_no_capabilities() -> None:
    config = ConfigSpace(b"\xff" * 256)
    assert config.is_dead
    assert config.pin is None
    assert config.capabilities() == ()


def test_what_a_mere_user_sees_says_that_capabilities_are_unknown() -> None:
    whole = FakeFunction("0000:00:10.0", msi=True).config()
    assert not ConfigSpace(whole[:64]).has_capabilities
    assert ConfigSpace(FakeFunction("0000:00:10.0").config()[:64]).has_capabilities


@given(st.binary(min_size=64, max_size=256))
def test_no_configuration_space_makes_the_decoder_fail_or_loop(raw: bytes) -> None:
    config = ConfigSpace(raw)
    assert len(config.capabilities()) <= 48
    assert config.msi_enabled in (True, False)


PCI_IDS = """# a comment
8085  Other
\t100e  Wrong
8086  Intel Corporation
\t100d  Nearly
\t100e  82540EM Gigabit Ethernet Controller
\t\t1af4 1100  QEMU Virtual Machine
8087  Next
\t100f  Another
"""


def test_what_a_card_is_called(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    bdf, ids = Bdf.parse("0000:00:10.0"), PciIds(0x8086, 0x100E, 0, 0, 0)
    assert hardware_name(tree.root, bdf, ids).error == "no hardware database knows it"
    tree.write("usr/share/misc/pci.ids", PCI_IDS)
    assert hardware_name(tree.root, bdf, ids).value == "Intel Corporation 82540EM Gigabit Ethernet Controller"
    assert hardware_name(tree.root, bdf, PciIds(0x8086, 0x100F, 0, 0, 0)).value == "Intel Corporation"
    assert not hardware_name(tree.root, bdf, PciIds(0x1234, 0x100F, 0, 0, 0)).is_known
    udev = {"ID_VENDOR_FROM_DATABASE": "In\x1btel", "ID_MODEL_FROM_DATABASE": "X"}
    assert hardware_name(tree.root, bdf, ids, udev=lambda asked: udev if asked == bdf else {}).value == "In\\x1btel X"
    silent = hardware_name(tree.root, bdf, ids, udev=lambda asked: {})
    assert silent.value == "Intel Corporation 82540EM Gigabit Ethernet Controller"


def test_udev_knows_the_functions_of_this_machine_and_no_others() -> None:
    for bdf in list_functions(HostRoot()).get(())[:4]:
        assert udev_properties(bdf)["PCI_SLOT_NAME"] == str(bdf)
    assert udev_properties(Bdf.parse("fffe:ff:1f.7")) == {}


@given(st.text(max_size=300))
def test_no_database_makes_the_look_up_fail(text: str) -> None:
    with TemporaryDirectory() as folder:
        tree = FakeTree(Path(folder))
        tree.write("usr/share/misc/pci.ids", text.encode("utf-8", "surrogatepass"))
        hardware_name(tree.root, Bdf.parse("0000:00:10.0"), PciIds(0x8086, 0x100E, 0, 0, 0))


CPU = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7763
flags\t\t: fpu vme svm{}

processor\t: 1
model name\t: another
"""


@pytest.mark.parametrize(("flag", "virtual"), [("", False), (" hypervisor lahf_lm", True)])
def test_the_first_processor_tells_what_it_is_and_whether_it_is_virtual(flag: str, virtual: bool) -> None:
    cpu = parse_cpuinfo(CPU.format(flag))
    assert cpu.model.value == "AMD EPYC 7763"
    assert cpu.virtual.value is virtual


def test_a_processor_without_a_word_stays_unknown(tmp_path: Path) -> None:
    assert parse_cpuinfo("Processor : ARM").virtual.value is None
    assert read_cpu(HostRoot(tmp_path)).model.value is None
