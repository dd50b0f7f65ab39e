"""KVM's and VFIO's numbers and layouts against what the kernel's headers say (tests/golden/abi.json, tools/gen-abi)."""

from __future__ import annotations

import errno
import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.abi import kvm, kvm_vcpu, vfio
from vfio_intx.abi.kvm import Chip, MsiRoute, PinRoute
from vfio_intx.errors import BusyError, KernelError, MissingError

TREE = Path(__file__).parents[2]
GOLDEN: dict[str, int] = json.loads((TREE / "tests/golden/abi.json").read_text())
SIZES = {
    "kvm_irq_level": kvm.IRQ_LEVEL,
    "kvm_irqchip": kvm.IRQCHIP,
    "kvm_irqfd": kvm.IRQFD,
    "kvm_userspace_memory_region": kvm.MEMORY_REGION,
    "kvm_irq_routing": kvm.ROUTING_HEAD,
    "kvm_irq_routing_entry": kvm.ROUTING_ENTRY,
    "kvm_msi": kvm.MSI,
    "kvm_enable_cap": kvm.ENABLE_CAP,
    "kvm_ioapic_state": kvm.IOAPIC_STATE,
    "kvm_pic_state": kvm.PIC_STATE,
    "kvm_regs": kvm_vcpu.REGS,
    "kvm_segment": kvm_vcpu.SEGMENT,
    "kvm_sregs": kvm_vcpu.SREGS,
}


def _numbers() -> list[tuple[str, int]]:
    found = [
        (name, value)
        for module in (kvm, kvm_vcpu, vfio)
        for name, value in vars(module).items()
        if name in GOLDEN and isinstance(value, int)
    ]
    found += [(f"KVM_CAP_{cap.name}", int(cap)) for cap in kvm.Cap]
    found += [(f"KVM_EXIT_{reason.name}", int(reason)) for reason in kvm_vcpu.Exit]
    found += [(f"KVM_IRQCHIP_{chip.name}", int(chip)) for chip in Chip]
    return found


@pytest.mark.parametrize(("name", "ours"), _numbers())
def test_the_numbers_are_the_headers(name: str, ours: int) -> None:
    assert ours == GOLDEN[name]


def test_the_table_leaves_no_request_of_ours_out() -> None:
    ours = {name for module in (kvm, kvm_vcpu) for name in vars(module) if name.startswith("KVM_")}
    assert ours <= GOLDEN.keys()


@pytest.mark.parametrize(("name", "layout"), SIZES.items())
def test_the_structures_have_the_headers_size(name: str, layout: struct.Struct) -> None:
    assert layout.size == GOLDEN[f"sizeof(struct {name})"]


@pytest.mark.parametrize(
    ("field", "offset"),
    [
        ("immediate_exit", kvm_vcpu.RUN_IMMEDIATE_EXIT),
        ("exit_reason", kvm_vcpu.RUN_EXIT_REASON),
        ("mmio.phys_addr", kvm_vcpu.RUN_EXIT_DATA),
        ("mmio.data", kvm_vcpu.RUN_EXIT_DATA + 8),
        ("io.direction", kvm_vcpu.RUN_EXIT_DATA),
        ("eoi.vector", kvm_vcpu.RUN_EXIT_DATA),
        ("internal.suberror", kvm_vcpu.RUN_EXIT_DATA),
        ("internal.data", kvm_vcpu.RUN_EXIT_DATA + 8),
    ],
)
def test_the_run_page_has_the_headers_offsets(field: str, offset: int) -> None:
    assert offset == GOLDEN[f"offsetof(struct kvm_run, {field})"]


def test_the_table_is_what_this_machines_headers_say(tmp_path: Path) -> None:
    if not shutil.which("cc") or not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("no C compiler or no kernel headers here: apt-get install gcc libc6-dev linux-libc-dev")
    made = tmp_path / "abi.json"
    subprocess.run([TREE / "tools/gen-abi", made], check=True)
    assert json.loads(made.read_text()) == GOLDEN


def test_irqfd_without_a_resample_eventfd_carries_no_valid_descriptor() -> None:
    fd, gsi, flags, resample = kvm.IRQFD.unpack(kvm.encode_irqfd(7, 20, kvm.KVM_IRQFD_FLAG_DEASSIGN, None))
    assert (fd, gsi, flags, resample) == (7, 20, 1, 0xFFFF_FFFF)


def test_routes_are_encoded_as_the_kernel_reads_them() -> None:
    raw = kvm.encode_routing([PinRoute(20, Chip.IOAPIC, 20), MsiRoute(21, 0x41, level=True, destination=3)])
    assert struct.unpack_from("=II", raw) == (2, 0)
    assert struct.unpack_from("=6I", raw, 8) == (20, 1, 0, 0, 2, 20)
    assert struct.unpack_from("=7I", raw, 8 + 48) == (21, 2, 0, 0, 0xFEE0_3000, 0, 0x8041)


def test_the_irqchip_is_read_from_the_right_places() -> None:
    table = [0] * 24
    table[20] = 1 << 14 | 0x8040
    chip = kvm.IRQCHIP.pack(Chip.IOAPIC, 0, kvm.IOAPIC_STATE.pack(0xFEC0_0000, 0, 0, 1 << 20, 0, *table))
    state = kvm.decode_ioapic(chip)
    assert state.is_requested(20)
    assert not state.is_requested(19)
    assert state.is_remote_irr(20)
    assert not state.is_remote_irr(0)
    registers = bytearray(16)
    registers[GOLDEN["offsetof(struct kvm_pic_state, isr)"]] = 4
    registers[GOLDEN["offsetof(struct kvm_pic_state, elcr)"]] = 8
    pic = kvm.decode_pic(kvm.IRQCHIP.pack(Chip.PIC_SLAVE, 0, bytes(registers)))
    assert (pic.isr, pic.elcr, pic.irr, pic.imr) == (4, 8, 0, 0)


def _page(exit_data: bytes) -> memoryview:
    page = bytearray(4096)
    page[kvm_vcpu.RUN_EXIT_DATA : kvm_vcpu.RUN_EXIT_DATA + len(exit_data)] = exit_data
    return memoryview(page)


@given(st.integers(0, 2**64 - 1), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.binary(min_size=8, max_size=8))
def test_an_mmio_exit_reads_back(address: int, size: int, is_write: bool, data: bytes) -> None:
    page = _page(struct.pack("=Q8sIB", address, data, size, is_write))
    expected = int.from_bytes(data[:size], "little")
    assert kvm_vcpu.decode_mmio(page) == (address, size, is_write, expected)


def test_the_hot_loop_looks_where_the_kernel_puts_an_mmio_exit() -> None:
    assert GOLDEN["offsetof(struct kvm_run, mmio.phys_addr)"] == 8 * kvm_vcpu.RUN_MMIO_ADDRESS
    assert GOLDEN["offsetof(struct kvm_run, mmio.data)"] == 8 * kvm_vcpu.RUN_MMIO_DATA
    assert GOLDEN["offsetof(struct kvm_run, mmio.len)"] == 8 * kvm_vcpu.RUN_MMIO_KIND
    assert GOLDEN["offsetof(struct kvm_run, mmio.is_write)"] == 8 * kvm_vcpu.RUN_MMIO_KIND + 4


@pytest.mark.parametrize(("is_write", "kind"), [(0, kvm_vcpu.MMIO_READ_32), (1, kvm_vcpu.MMIO_WRITE_32)])
def test_the_hot_loop_knows_an_access_whatever_stale_bytes_follow(is_write: int, kind: int) -> None:
    page = _page(struct.pack("=Q8sIB", 0xE000_0000, bytes(8), 4, is_write) + b"\xff\xff\xff")
    assert page.cast("Q")[kvm_vcpu.RUN_MMIO_KIND] & kvm_vcpu.RUN_MMIO_KIND_MASK == kind


def test_a_port_exit_takes_its_value_from_the_offset_in_the_page() -> None:
    page = _page(struct.pack("=BBHIQ", 1, 2, 0x4D0, 1, 1024))
    page[1024:1026] = b"\x34\x12"
    assert kvm_vcpu.decode_port(page) == (0x4D0, 2, True, 0x1234)


def test_an_internal_error_of_absurd_length_is_cut() -> None:
    suberror, words = kvm_vcpu.decode_internal_error(_page(struct.pack("=II", 1, 2**32 - 1)))
    assert suberror == 1
    assert len(words) == 16


def test_exits_have_names_also_where_we_know_none() -> None:
    assert kvm_vcpu.exit_name(26) == "KVM_EXIT_IOAPIC_EOI"
    assert kvm_vcpu.exit_name(99) == "KVM_EXIT number 99"


def test_no_kvm_here_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        kvm.open_kvm(tmp_path / "kvm")


def test_something_else_in_its_place_is_said_so() -> None:
    with pytest.raises(MissingError, match="is not KVM"):
        kvm.open_kvm("/dev/null")


def test_a_directory_in_its_place_keeps_the_errno(tmp_path: Path) -> None:
    with pytest.raises(KernelError) as caught:
        kvm.open_kvm(tmp_path)
    assert caught.value.errno_name == "EISDIR"


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENODEV, MissingError, "no driver behind it"),
        (errno.ENXIO, MissingError, "no driver behind it"),
        (errno.EBUSY, BusyError, "is busy"),
        (errno.EMFILE, KernelError, "EMFILE"),
    ],
)
def test_what_the_kernel_says_to_an_open_becomes_an_error_of_ours(number: int, kind: type, said: str) -> None:
    error = kvm.unopened("/dev/kvm", OSError(number, "x"))
    assert type(error) is kind
    assert said in str(error)
