"""kick: whose device it is, what the kernel is asked, and what the answer means."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.tree import FakeFunction, FakeTree
from tests.fakes.vfio_device import ICS, IMS, FakeVfioDevice
from vfio_intx.abi import eventfd, vfio
from vfio_intx.abi.pciconf import PCI_COMMAND, PCI_COMMAND_INTX_DISABLE
from vfio_intx.cli.main import main
from vfio_intx.errors import KernelError, MissingError, RefusedError
from vfio_intx.names import Bdf
from vfio_intx.wiring.kick import Kicked, Moment, find_owner, kick, unmask

BDF = Bdf.parse("0000:00:10.0")


@pytest.fixture
def trigger() -> Iterator[int]:
    fd = eventfd.create()
    yield fd
    os.close(fd)


def assert_interrupt(device: FakeVfioDevice) -> None:
    bar = device.region_info(0)
    device.write(bar, IMS, (4).to_bytes(4, "little"))
    device.write(bar, ICS, (4).to_bytes(4, "little"))


def test_a_masked_line_is_open_again(trigger: int) -> None:
    with FakeVfioDevice() as device:
        device.set_irqs(vfio.trigger(trigger))
        device.set_irqs(vfio.MASK)
        assert unmask(device, dry_run=True) is False
        assert device.is_masked
        assert unmask(device, dry_run=False) is False
        assert not device.is_masked


def test_a_card_that_still_asserts_stays_masked_and_the_guest_is_told_again(trigger: int) -> None:
    with FakeVfioDevice() as device:
        device.set_irqs(vfio.trigger(trigger))
        assert_interrupt(device)
        assert os.read(trigger, 8)
        unmask(device, dry_run=False)
        assert os.read(trigger, 8)
        assert device.is_masked


def test_a_line_that_the_guest_masks_itself_is_said_to_be_so(trigger: int) -> None:
    with FakeVfioDevice() as device:
        device.set_irqs(vfio.trigger(trigger))
        config = device.region_info(vfio.VFIO_PCI_CONFIG_REGION_INDEX)
        device.write(config, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE.to_bytes(2, "little"))
        assert unmask(device, dry_run=False) is True


def test_a_device_that_uses_msi_has_no_line_to_reopen() -> None:
    with FakeVfioDevice() as device, pytest.raises(RefusedError, match="not in INTx mode"):
        unmask(device, dry_run=False)


def test_a_device_without_a_pin_has_no_line() -> None:
    with FakeVfioDevice(pin=0) as device, pytest.raises(MissingError, match="has no INTx"):
        unmask(device, dry_run=False)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM])
def test_another_errno_is_kept(trigger: int, number: int) -> None:
    with FakeVfioDevice() as device:
        device.set_irqs(vfio.trigger(trigger))
        device.faults.append(("unmask", number))
        with pytest.raises(KernelError) as caught:
            unmask(device, dry_run=False)
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("guest", "before", "after", "words"),
    [
        (False, Moment(True, False, 5), Moment(False, False, 5), "is open again"),
        (False, Moment(True, True, 5), Moment(True, True, 5), "still asserts"),
        (False, Moment(False, False, 5), Moment(False, False, 6), "open already"),
        (True, Moment(True, False, 5), Moment(True, False, 5), "the guest's driver has masked"),
        (False, Moment(None, None, None), Moment(None, None, None), "could not be seen"),
    ],
)
def test_what_came_of_it(guest: bool, before: Moment, after: Moment, words: str) -> None:
    assert words in Kicked(BDF, 1, guest, 1, before, after).outcome


class Host(FakeTree):
    """A host whose only QEMU is this very process, with descriptors that are said to be vfio devices."""

    def qemu(self, *fds: int, node: str = "4", started: int = 500, info: str = "") -> None:
        pid = os.getpid()
        self.write(f"proc/{pid}/cmdline", "qemu-system-x86_64\0-name\0web\0")
        self.write(f"proc/{pid}/stat", f"{pid} (q) S " + " ".join(["1"] * 18) + f" {started} 0 0\n")
        self.link(f"proc/{pid}/exe", "usr/bin/qemu-system-x86_64")
        for number, target in (*((fd, "anon_inode:[vfio-device]") for fd in fds), (9999, f"/dev/vfio/{node}")):
            (self.path / f"proc/{pid}/fd").mkdir(exist_ok=True)
            (self.path / f"proc/{pid}/fd/{number}").symlink_to(target)
        for fd in fds:
            self.write(f"proc/{pid}/fdinfo/{fd}", info)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    found = Host(tmp_path)
    found.add(FakeFunction(str(BDF), irq=21, driver="vfio-pci", group=4))
    return found


def test_the_owner_is_who_holds_the_group(host: Host, trigger: int) -> None:
    host.qemu(trigger)
    process, function = find_owner(host.root, BDF)
    assert (process.label, function.bdf) == ("web", BDF)


def test_the_owner_may_hold_the_device_itself_and_no_group(host: Host, trigger: int) -> None:
    """As with iommufd: /dev/vfio/devices/vfioN, whose name sysfs tells."""
    (host.path / f"sys/bus/pci/devices/{BDF}/vfio-dev/vfio7").mkdir(parents=True)
    host.qemu(trigger, node="devices/vfio7")
    assert find_owner(host.root, BDF)[0].label == "web"


def test_another_device_that_is_held_is_not_this_one(host: Host, trigger: int) -> None:
    (host.path / f"sys/bus/pci/devices/{BDF}/vfio-dev/vfio7").mkdir(parents=True)
    host.qemu(trigger, node="devices/vfio77")
    with pytest.raises(MissingError, match="no running QEMU has"):
        find_owner(host.root, BDF)


def test_nobody_holds_it(host: Host, trigger: int) -> None:
    host.qemu(trigger, node="5")
    with pytest.raises(MissingError, match="no running QEMU has"):
        find_owner(host.root, BDF)
    with pytest.raises(MissingError, match="there is no PCI function"):
        find_owner(host.root, Bdf.parse("0000:00:11.0"))


def test_descriptors_that_may_not_be_seen(host: Host, trigger: int) -> None:
    import shutil

    host.qemu(trigger)
    shutil.rmtree(host.path / f"proc/{os.getpid()}/fd")
    with pytest.raises(RefusedError, match="cannot be seen"):
        find_owner(host.root, BDF)


def test_a_borrowed_descriptor_is_closed_whatever_the_kernel_says(host: Host, trigger: int) -> None:
    host.qemu(trigger)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KernelError) as caught:
        kick(host.root, BDF)
    assert caught.value.errno_name == "ENOTTY", "an eventfd knows none of vfio's calls"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_descriptor_that_the_kernel_names_as_another_device_is_left_alone(host: Host, trigger: int) -> None:
    host.qemu(trigger, info="vfio-device-syspath: /sys/devices/pci0000:00/0000:00:11.0\n")
    with pytest.raises(MissingError, match="none of the vfio descriptors of VM web"):
        kick(host.root, BDF)


@pytest.fixture
def twins(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeVfioDevice, FakeVfioDevice]]:
    """Two equal cards of one QEMU, which a kernel before 6.13 does not tell apart; in the order of its descriptors."""
    fds = [eventfd.create(), eventfd.create()]
    host.qemu(*fds)
    with FakeVfioDevice() as first, FakeVfioDevice() as second:
        cards = [first, second]
        # What pidfd_getfd() brings are copies of the eventfds; a vfio device cannot be made without a card.
        monkeypatch.setattr("vfio_intx.wiring.kick.DeviceFile", lambda fd, name: cards.pop(0))
        yield first, second
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_twin_without_a_line_is_no_reason_to_leave_the_stuck_one(
    host: Host, twins: tuple[FakeVfioDevice, FakeVfioDevice], trigger: int, stuck: int
) -> None:
    twins[stuck].set_irqs(vfio.trigger(trigger))
    twins[stuck].set_irqs(vfio.MASK)
    assert kick(host.root, BDF).candidates == 2
    assert not twins[stuck].is_masked


def test_two_twins_without_a_line_are_refused(host: Host, twins: tuple[FakeVfioDevice, FakeVfioDevice]) -> None:
    with pytest.raises(RefusedError, match="not in INTx mode"):
        kick(host.root, BDF)


def test_a_twin_that_its_guest_masks_is_not_taken_for_the_line(
    host: Host, twins: tuple[FakeVfioDevice, FakeVfioDevice], trigger: int
) -> None:
    other = eventfd.create()
    for card, fd in zip(twins, (trigger, other), strict=True):
        card.set_irqs(vfio.trigger(fd))
    config = twins[0].region_info(vfio.VFIO_PCI_CONFIG_REGION_INDEX)
    twins[0].write(config, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE.to_bytes(2, "little"))
    assert kick(host.root, BDF).guest_masks is False
    os.close(other)


def test_by_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main(["kick", "0000:ff:1f.7"]) == 1
    assert "there is no PCI function" in capsys.readouterr().err
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["kick", "0000:ff:1f.7"]) == 1
    assert "needs root" in capsys.readouterr().err
