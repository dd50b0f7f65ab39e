"""VFIO's numbers and structures against what a C compiler makes of the header (linux/vfio.h of 6.1)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.abi import vfio
from vfio_intx.errors import KernelError


@pytest.mark.parametrize(
    ("number", "compiled"),
    [
        (vfio.VFIO_GET_API_VERSION, 15204),
        (vfio.VFIO_CHECK_EXTENSION, 15205),
        (vfio.VFIO_SET_IOMMU, 15206),
        (vfio.VFIO_GROUP_GET_STATUS, 15207),
        (vfio.VFIO_GROUP_SET_CONTAINER, 15208),
        (vfio.VFIO_GROUP_UNSET_CONTAINER, 15209),
        (vfio.VFIO_GROUP_GET_DEVICE_FD, 15210),
        (vfio.VFIO_DEVICE_GET_INFO, 15211),
        (vfio.VFIO_DEVICE_GET_REGION_INFO, 15212),
        (vfio.VFIO_DEVICE_GET_IRQ_INFO, 15213),
        (vfio.VFIO_DEVICE_SET_IRQS, 15214),
        (vfio.VFIO_DEVICE_RESET, 15215),
    ],
)
def test_numbers(number: int, compiled: int) -> None:
    assert number == compiled


@pytest.mark.parametrize(
    ("request_", "encoded"),
    [
        (vfio.trigger(9), "18000000 24000000 00000000 00000000 01000000 09000000"),
        (vfio.unmask_eventfd(10), "18000000 14000000 00000000 00000000 01000000 0a000000"),
        (vfio.UNMASK_DETACH, "18000000 14000000 00000000 00000000 01000000 ffffffff"),
        (vfio.LOOPBACK, "14000000 21000000 00000000 00000000 01000000"),
        (vfio.MASK, "14000000 09000000 00000000 00000000 01000000"),
        (vfio.UNMASK, "14000000 11000000 00000000 00000000 01000000"),
        (vfio.DISABLE, "14000000 21000000 00000000 00000000 00000000"),
    ],
    ids=lambda value: value.name if isinstance(value, vfio.IrqRequest) else "",
)
def test_requests_as_the_kernel_reads_them(request_: vfio.IrqRequest, encoded: str) -> None:
    assert request_.encoded == bytes.fromhex(encoded)


@given(flags=st.integers(0, 63), data=st.binary(max_size=16), count=st.integers(0, 2**32 - 1), name=st.text(max_size=8))
def test_decoding_gives_back_what_was_encoded(flags: int, data: bytes, count: int, name: str) -> None:
    decoded = vfio.decode_irq_set(vfio.encode_irq_set(name, vfio.IrqSet(flags), data, count=count).encoded)
    assert decoded == vfio.DecodedIrqSet(20 + len(data), flags, 0, 0, count, data)


@pytest.mark.parametrize("make", [vfio.trigger, vfio.unmask_eventfd])
def test_a_negative_descriptor_is_never_sent_by_accident(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="open eventfd"):
        make(-1)


def test_a_short_request_is_not_decoded() -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        vfio.decode_irq_set(bytes(19))
    with pytest.raises(ValueError, match="four bytes"):
        vfio.decode_eventfd(bytes(3))


def test_half_a_register_is_an_error_not_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.write_bytes(b"\x07\x01\x10")
    fd = os.open(path, os.O_RDONLY)
    try:
        device = vfio.DeviceFile(fd, "0000:05:00.0")
        region = vfio.RegionInfo(7, vfio.RegionFlag.READ, 256, 0)
        assert device.read(region, 0, 2) == b"\x07\x01"
        with pytest.raises(KernelError, match=r"region 7 of 0000:05:00\.0") as caught:
            device.read(region, 0, 4)
        assert caught.value.errno_name == "EIO"
        with pytest.raises(KernelError) as caught:
            device.write(region, 0, b"\x00")
        assert caught.value.errno_name == "EBADF"
    finally:
        os.close(fd)


def test_calls_on_what_is_no_device_keep_their_errno() -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        device = vfio.DeviceFile(fd, "0000:05:00.0")
        for call, operation in (
            (device.info, "VFIO_DEVICE_GET_INFO"),
            (device.irq_info, "VFIO_DEVICE_GET_IRQ_INFO"),
            (lambda: device.region_info(0), "VFIO_DEVICE_GET_REGION_INFO"),
            (lambda: device.set_irqs(vfio.MASK), "VFIO_DEVICE_SET_IRQS (mask)"),
            (lambda: vfio.api_version(fd), "VFIO_GET_API_VERSION"),
            (lambda: vfio.has_extension(fd, vfio.VFIO_TYPE1_IOMMU), "VFIO_CHECK_EXTENSION"),
            (lambda: vfio.set_iommu(fd, vfio.VFIO_TYPE1_IOMMU), "VFIO_SET_IOMMU"),
            (lambda: vfio.group_status(fd, "group 4"), "VFIO_GROUP_GET_STATUS"),
            (lambda: vfio.set_container(fd, fd, "group 4"), "VFIO_GROUP_SET_CONTAINER"),
            (lambda: vfio.get_device_fd(fd, "0000:05:00.0"), "VFIO_GROUP_GET_DEVICE_FD"),
        ):
            with pytest.raises(KernelError) as caught:
                call()
            assert (caught.value.operation, caught.value.errno_name) == (operation, "ENOTTY")
    finally:
        os.close(fd)
