"""Descriptors through a monitor into a real QEMU: they arrive, they are the same object, they go again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_monitor import start_qemu
from vfio_intx.abi import eventfd
from vfio_intx.errors import KernelError, PeerGone, PeerRefused
from vfio_intx.qemu.monitor import QmpMonitor
from vfio_intx.qemu.transports import connect
from vfio_intx.wiring.direct import own_eventfds
from vfio_intx.wiring.handover import lent, names_of

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None,
    reason="qemu-system-x86_64 is not installed: apt-get install qemu-system-x86",
)


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[tuple[QmpMonitor, int]]:
    """A monitor, and QEMU's process."""
    path = tmp_path / "vm.sock"
    with start_qemu(path, "-machine", "none") as process, connect(path, budget_s=60) as monitor:
        yield monitor, process.pid


def eventfds_of(pid: int) -> list[int]:
    """The identities of the eventfds that a process has open."""
    found = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        info = eventfd.parse_fdinfo(path.read_text())
        if info is not None and info.identity is not None:
            found.append(info.identity)
    return found


def identity(fd: int) -> int:
    info = eventfd.inspect(fd, proc=Path("/proc"))
    assert info is not None
    assert info.identity is not None
    return info.identity


def test_qemu_gets_a_copy_of_the_very_object(vm: tuple[QmpMonitor, int]) -> None:
    monitor, pid = vm
    fd = eventfd.create()
    try:
        assert identity(fd) not in eventfds_of(pid)
        monitor.give_descriptor(fd, "probe")
        assert eventfds_of(pid).count(identity(fd)) == 1
        monitor.execute("closefd", {"fdname": "probe"})
        assert identity(fd) not in eventfds_of(pid)
        with pytest.raises(PeerRefused):
            monitor.execute("closefd", {"fdname": "probe"})
    finally:
        os.close(fd)


def test_what_no_command_took_is_not_left_in_qemu(vm: tuple[QmpMonitor, int]) -> None:
    monitor, pid = vm
    with own_eventfds() as pair:
        ours = [identity(pair.trigger), identity(pair.resample)]
        seen: list[int] = []

        def refused() -> None:
            with lent(monitor, names_of(pair)) as value:
                seen.extend(eventfds_of(pid))
                monitor.execute("qom-set", {"path": "/machine", "property": "x-intx-eventfds", "value": value})

        with pytest.raises(PeerRefused):
            refused()
        assert all(one in seen for one in ours)
        assert not any(one in eventfds_of(pid) for one in ours)


def test_a_closed_monitor_takes_none(vm: tuple[QmpMonitor, int]) -> None:
    monitor, _ = vm
    monitor.close()
    with own_eventfds() as pair, pytest.raises(PeerGone):
        monitor.give_descriptor(pair.trigger, "probe")


def test_a_closed_descriptor_is_ours_to_mend_and_not_the_peers_fault(vm: tuple[QmpMonitor, int]) -> None:
    monitor, _ = vm
    fd = eventfd.create()
    os.close(fd)
    with pytest.raises(KernelError) as caught:
        monitor.give_descriptor(fd, "probe")
    assert caught.value.errno == errno.EBADF
    assert monitor.execute("query-status")
