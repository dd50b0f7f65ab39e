"""What bind, unbind and restore refuse before they touch anything, each with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.kernel import FakeKernel, nic_host
from tests.fakes.test_drivers import records
from tests.fakes.tree import FakeFunction
from vfio_intx.cli.main import main
from vfio_intx.diagnose.prediction import predict
from vfio_intx.errors import (
    BusyError,
    MissingError,
    RefusedError,
    UsageError,
    WorldError,
)
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf
from vfio_intx.wiring.drivers import bind, restore, unbind, with_group

BDF = Bdf.parse("0000:00:10.0")
NIC = str(BDF)
VERBS: dict[str, Callable[[FakeKernel, Path, Bdf], object]] = {
    "bind": lambda kernel, state, bdf: bind(kernel, state, [bdf]),
    "unbind": unbind,
    "restore": restore,
}


def test_a_group_with_a_live_sibling_is_refused_and_named(kernel: FakeKernel, state: Path) -> None:
    kernel.tree.add(FakeFunction("0000:00:10.1", driver="snd_hda_intel", group=4, irq=22))
    with pytest.raises(RefusedError, match=r"0000:00:10.1 \(snd_hda_intel\) would stay"):
        bind(kernel, state, [BDF])
    assert kernel.log == []
    assert not state.exists()


@pytest.mark.parametrize("node", ["/dev/vfio/4", "/dev/vfio/devices/vfio7"])
def test_no_unbind_is_started_while_a_process_has_the_device_open(kernel: FakeKernel, state: Path, node: str) -> None:
    bind(kernel, state, [BDF])
    (kernel.tree.directory(NIC) / "vfio-dev/vfio7").mkdir(parents=True)
    kernel.tree.process(4710, "other", ["/dev/vfio/5", "/dev/vfio/devices/vfio8"])
    kernel.tree.process(4711, "qemu-system-x86", ["/dev/null", node])
    before = list(kernel.log)
    for verb in (unbind, restore):
        with pytest.raises(BusyError, match=r"process 4711 \(qemu-system-x86\)") as caught:
            verb(kernel, state, BDF)
        assert f"vfio-intx detach {NIC} --pid 4711" in (caught.value.hint or "")
    assert kernel.log == before


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"pin": 0}, RefusedError, "no INTx pin"),
        ({"pin": 255}, RefusedError, "interrupt pin 255"),
        ({"dead": True}, RefusedError, "all ones"),
        ({"header_type": 1}, RefusedError, "bridge"),
        ({"group": None}, MissingError, "no IOMMU"),
    ],
)
def test_what_cannot_be_forwarded_is_refused_before_anything_is_made(
    tmp_path: Path, state: Path, changes: dict[str, object], error: type[Exception], says: str
) -> None:
    kernel = nic_host(tmp_path / "host", **changes)
    with pytest.raises(error, match=says):
        bind(kernel, state, [BDF])
    assert kernel.log == []
    assert not state.exists()


@pytest.mark.parametrize("verb", VERBS)
def test_an_absent_function_is_named(verb: str, kernel: FakeKernel, state: Path) -> None:
    absent = Bdf.parse("0000:ff:1f.7")
    with pytest.raises(MissingError, match=r"0000:ff:1f\.7"):
        VERBS[verb](kernel, state, absent)
    assert not state.exists()


def test_without_root_nothing_is_touched(kernel: FakeKernel, state: Path) -> None:
    kernel.is_root = False
    for attempt in VERBS.values():
        with pytest.raises(RefusedError, match="only root"):
            attempt(kernel, state, BDF)
    assert not state.exists()


def test_unbind_of_a_host_driver_is_refused(kernel: FakeKernel, state: Path) -> None:
    with pytest.raises(RefusedError, match="not bound to vfio-pci: e1000 has it"):
        unbind(kernel, state, BDF)
    assert kernel.state(NIC) == ("e1000", "")


@pytest.mark.parametrize("verb", ["bind", "unbind", "restore", "scan"])
def test_a_malformed_address_is_a_usage_error(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "00:1g.0"]) == UsageError.exit_status
    assert "is not a PCI address" in capsys.readouterr().err


def test_the_state_directory_must_be_ours_alone(kernel: FakeKernel, tmp_path: Path) -> None:
    wide, real, link = tmp_path / "wide", tmp_path / "real", tmp_path / "link"
    wide.mkdir(mode=0o755)
    wide.chmod(0o755)
    real.mkdir(mode=0o700)
    link.symlink_to(real)
    for directory in (wide, link):
        with pytest.raises(RefusedError, match="state directory") as caught:
            bind(kernel, directory, [BDF])
        # It may be a slip for /tmp: nobody is told to close a folder that others need.
        assert "chmod" not in str(caught.value.hint)
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match="file cannot be used: it is not a directory"):
        bind(kernel, tmp_path / "file", [BDF])
    if os.geteuid() == 0:
        os.chown(real, 12345, 12345)
        with pytest.raises(RefusedError, match="uid 12345"):
            bind(kernel, real, [BDF])
    assert kernel.state(NIC) == ("e1000", "")


def test_an_override_that_is_no_driver_s_name_is_refused_and_not_lost(tmp_path: Path, state: Path) -> None:
    kernel = nic_host(tmp_path / "host", override="not/a driver")
    with pytest.raises(WorldError, match="driver_override cannot be read"):
        bind(kernel, state, [BDF])
    assert kernel.state(NIC) == ("e1000", "not/a driver")


def test_a_bridge_whose_driver_blocks_the_group_is_named_with_what_frees_it(kernel: FakeKernel, state: Path) -> None:
    bridge = "0000:00:1e.0"
    kernel.tree.add(FakeFunction(bridge, driver="shpchp", group=4, header_type=1, class_code=0x060400))
    snapshot = take_snapshot(kernel.root)
    with pytest.raises(RefusedError, match=rf"{bridge} \(shpchp\) would stay") as caught:
        bind(kernel, state, with_group(snapshot, BDF))
    assert f"echo {bridge} > /sys/bus/pci/drivers/shpchp/unbind" in (caught.value.hint or "")
    (finding,) = [f for f in predict(snapshot.function(BDF), snapshot).findings if f.code == "INTX025"]
    assert finding.remedy == f"echo {bridge} > /sys/bus/pci/drivers/shpchp/unbind"


def test_a_group_that_cannot_be_read_is_not_called_absent(tmp_path: Path, state: Path) -> None:
    kernel = nic_host(tmp_path / "host", group=None)
    (kernel.tree.directory(NIC) / "iommu_group").mkdir()
    with pytest.raises(WorldError, match="iommu_group cannot be read: Invalid argument"):
        bind(kernel, state, [BDF])


def test_a_driver_that_cannot_be_unbound_by_hand_is_told_before_anything_is_written(
    kernel: FakeKernel, state: Path
) -> None:
    """With suppress_bind_attrs a driver has no such file (driver_register in drivers/base/bus.c)."""
    (kernel.tree.path / "sys/bus/pci/drivers/e1000/unbind").unlink()
    with pytest.raises(RefusedError, match="e1000 has no file unbind") as caught:
        bind(kernel, state, [BDF])
    assert f"vfio-intx persist {NIC}" in (caught.value.hint or "")
    assert kernel.log == []
    assert records(state) == []
