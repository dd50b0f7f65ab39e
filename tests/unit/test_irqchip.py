"""The parsers of ``info pic`` and ``info irq``, on texts recorded from real QEMUs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.errors import PeerGarbage
from vfio_intx.qemu.irqchip import (
    KERNEL_IOAPIC_VERSION,
    QEMU_IOAPIC_VERSION,
    parse_controllers,
    parse_counts,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "qemu"


def golden(name: str) -> str:
    return (GOLDEN / name).read_text()


@pytest.mark.parametrize(
    ("vm", "version", "in_kernel"),
    [
        ("7.2-pc-kernel-reset", KERNEL_IOAPIC_VERSION, True),
        ("7.2-pc-split-reset", QEMU_IOAPIC_VERSION, False),
        ("7.2-q35-userspace-reset", QEMU_IOAPIC_VERSION, False),
    ],
)
def test_a_vm_after_reset(vm: str, version: int, in_kernel: bool) -> None:
    found = parse_controllers(golden(f"{vm}-info-pic.txt"), "x")
    assert [chip.version for chip in found.ioapics] == [version]
    assert [pin.number for pin in found.ioapics[0].pins] == list(range(24))
    assert all(pin.masked and not pin.level and not pin.raised for pin in found.ioapics[0].pins)
    assert sorted(pic.number for pic in found.pics) == [0, 1]
    assert parse_counts(golden(f"{vm}-info-irq.txt"), "x").ioapic_in_kernel is in_kernel


def test_a_linux_guest_with_a_line_on_gsi_10() -> None:
    found = parse_controllers(golden("7.2-pc-kernel-running-info-pic.txt"), "x")
    pin = found.ioapic_pin(10)
    assert pin is not None
    assert (pin.level, pin.masked, pin.vector, pin.remote_irr) == (True, False, 38, False)
    assert found.listens(10)
    assert not found.listens(11)
    assert not found.listens(4), "an edge pin is nobody's INTx"
    assert not found.listens(99)


def test_a_stopped_guest_with_its_interrupt_pending() -> None:
    found = parse_controllers(golden("7.2-q35-kernel-pending-info-pic.txt"), "x")
    pin = found.ioapic_pin(22)
    assert pin is not None
    assert pin.remote_irr
    assert pin.raised


def test_only_what_qemu_raised_itself_is_counted() -> None:
    irqfd = parse_counts(golden("7.2-pc-kernel-running-info-irq.txt"), "x")
    assert irqfd.of(10) == 0
    assert irqfd.of(0) > 0
    trap = parse_counts(golden("7.2-pc-trap-running-info-irq.txt"), "x")
    assert trap.of(10) == 24
    assert 10 in trap.gsis


def test_a_guest_on_the_pic_listens_by_elcr_and_mask() -> None:
    text = (
        "pic1: irr=00 imr=f3 isr=00 hprio=0 irq_base=38 rr_sel=0 elcr=0c fnm=0\r\n"
        "pic0: irr=00 imr=00 isr=00 hprio=0 irq_base=30 rr_sel=0 elcr=00 fnm=0\r\n"
    )
    found = parse_controllers(text, "x")
    assert [irq for irq in range(16) if found.listens(irq)] == [10, 11]


@pytest.mark.parametrize("text", ["", "unknown command: 'info pic'\n", "ioapic: nothing\n", "pic7: irr=00"])
def test_a_text_without_controllers_is_garbage(text: str) -> None:
    with pytest.raises(PeerGarbage, match="named no interrupt controller"):
        parse_controllers(text, "x")


def test_a_text_without_end_is_garbage() -> None:
    with pytest.raises(PeerGarbage, match="lines"):
        parse_counts("IRQ statistics for ioapic:\n" + " 1: 1\n" * 10_000, "x")


@given(st.text(alphabet=st.sampled_from("ioapc0123456789abcdefx:= \r\npinrs(none)IRR"), max_size=300))
def test_no_text_breaks_a_parser(text: str) -> None:
    parse_counts(text, "x")
    with suppress(PeerGarbage):  # for a text with more lines than QEMU ever prints
        parse_controllers("ioapic0: ver=0x20 id=0x00 sel=0x00\n" + text, "x")


@given(st.integers(0, 2**17 - 1), st.booleans())
def test_a_pin_is_read_from_its_redirection_entry(entry: int, raised: bool) -> None:
    text = f"ioapic0: ver=0x20 id=0x00 sel=0x00\n  pin 5  0x{entry:016x} dest=0 vec=0   words words\n"
    text += "  IRR      5\n" if raised else "  IRR      (none)\n"
    pin = parse_controllers(text, "x").ioapic_pin(5)
    assert pin is not None
    assert pin.vector == entry % 256
    assert (pin.masked, pin.level, pin.remote_irr) == (entry >> 16 & 1, entry >> 15 & 1, entry >> 14 & 1)
    assert pin.raised is raised


@pytest.mark.parametrize(
    "line",
    [
        "  IRR      " + "9" * 5000,  # int() refuses it with a ValueError, which is no error of the peer's
        "  IRR      22 " + "4096 " * 4,
        "  IRR"
        + " " * 200_000
        + "x",  # where the spaces can be read in many ways, this takes longer than anybody waits
        "  IRR 1" + " 1" * 100_000 + "x",
    ],
)
def test_a_list_of_pins_that_is_none_is_passed_over_at_once(line: str) -> None:
    (chip,) = parse_controllers(
        f"ioapic0: ver=0x20 id=0x00 sel=0x00\n  pin 22 0x{0x8000:016x} dest=0\n{line}\n", "x"
    ).ioapics
    assert not chip.pins[0].raised


def test_several_pins_up_at_once() -> None:
    text = f"ioapic0: ver=0x20 id=0x00 sel=0x00\n  pin 5 0x{0x8000:016x} dest=0\n  IRR      5  11 22 \n"
    assert parse_controllers(text, "x").ioapics[0].pins[0].raised
