"""Opening a device by ourselves on hosts where it cannot work: each reason told, nothing left open."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.errors import KernelError, MissingError, RefusedError, VfioIntxError
from vfio_intx.names import Bdf
from vfio_intx.wiring.device_files import open_device

BDF = "0000:05:00.0"
_NOBODY = 65534


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def attempt(tree: FakeTree) -> VfioIntxError:
    """What open_device() raises on that host; it never leaves a descriptor."""
    before = open_descriptors()
    with pytest.raises(VfioIntxError) as caught:
        open_device(tree.root, Bdf.parse(BDF))
    assert open_descriptors() == before
    return caught.value


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    return FakeTree(tmp_path)


def add(tree: FakeTree, *, driver: str = "vfio-pci", group: int | None = 7) -> None:
    if driver:
        tree.driver(driver)
    tree.add(FakeFunction(BDF, driver=driver, group=group))


def test_no_such_function(tree: FakeTree) -> None:
    error = attempt(tree)
    assert isinstance(error, MissingError)
    assert BDF in str(error)


@pytest.mark.parametrize(("driver", "words"), [("e1000", "bound to e1000"), ("", "bound to no driver")])
def test_not_on_vfio_pci(tree: FakeTree, driver: str, words: str) -> None:
    add(tree, driver=driver)
    error = attempt(tree)
    assert isinstance(error, RefusedError)
    assert words in str(error)
    assert error.hint == f"vfio-intx bind {BDF}"


def test_no_iommu(tree: FakeTree) -> None:
    add(tree, group=None)
    error = attempt(tree)
    assert isinstance(error, MissingError)
    assert "no IOMMU" in str(error)
    assert "intel_iommu=on" in (error.hint or "")


def test_no_vfio_node(tree: FakeTree) -> None:
    add(tree)
    error = attempt(tree)
    assert isinstance(error, MissingError)
    assert "/dev/vfio/vfio does not exist" in str(error)


def test_a_node_that_is_not_vfio(tree: FakeTree) -> None:
    add(tree)
    tree.write("dev/vfio/vfio", "")
    error = attempt(tree)
    assert isinstance(error, KernelError)
    assert (error.operation, error.errno_name) == ("VFIO_GET_API_VERSION", "ENOTTY")


@pytest.fixture
def nobodys_tree() -> Iterator[FakeTree]:
    """A tree of a user's, whom we are meanwhile: root may open everything."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield FakeTree(Path(name))
            return
        os.chown(name, _NOBODY, _NOBODY)
        os.seteuid(_NOBODY)
        try:
            yield FakeTree(Path(name))
        finally:
            os.seteuid(0)


def test_a_node_that_may_not_be_opened(nobodys_tree: FakeTree) -> None:
    add(nobodys_tree)
    nobodys_tree.write("dev/vfio/vfio", "").chmod(0)
    error = attempt(nobodys_tree)
    assert isinstance(error, KernelError)
    assert error.errno_name == "EACCES"
    assert "root" in (error.hint or "")
