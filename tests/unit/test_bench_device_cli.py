"""``bench --device`` on hosts and arguments that cannot work: a sentence, a next step, the right status."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.cli import bench
from vfio_intx.errors import RefusedError, UsageError
from vfio_intx.host.root import HostRoot


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


def test_what_is_no_address_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a PCI address"):
        bench.run(parsed("--device", "eth0"), HostRoot(tmp_path))


def test_the_ceiling_has_no_device(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no device"):
        bench.run(parsed("--device", "05:00.0", "--ceiling"), HostRoot(tmp_path))


@pytest.mark.kvm
@pytest.mark.parametrize("count", ["0", "1000000000", "x"])
def test_counts_beyond_reason(tmp_path: Path, count: str) -> None:
    tree = FakeTree(tmp_path)
    (tmp_path / "dev/kvm").unlink()
    (tmp_path / "dev/kvm").symlink_to("/dev/kvm")
    with pytest.raises(UsageError, match="--count"):
        bench.run(parsed("--device", "05:00.0", "--count", count), tree.root)


@pytest.mark.kvm
def test_a_device_with_a_host_driver_is_refused_with_the_way_to_go_on(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    (tmp_path / "dev/kvm").unlink()
    (tmp_path / "dev/kvm").symlink_to("/dev/kvm")
    tree.driver("e1000")
    tree.add(FakeFunction("0000:05:00.0", driver="e1000", group=3))
    with pytest.raises(RefusedError, match="bound to e1000") as caught:
        bench.run(parsed("--device", "05:00.0"), tree.root)
    assert caught.value.hint == "vfio-intx bind 0000:05:00.0"
