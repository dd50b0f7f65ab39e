"""The udev rule of persist: shown, written, removed, and never anybody else's."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeTree
from vfio_intx.cli import persist
from vfio_intx.errors import RefusedError, WorldError
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf
from vfio_intx.wiring.persist import RuleFile, install, installed, remove, rule_for
from vfio_intx.wiring.refusals import refusals

BDF = Bdf.parse("0000:00:10.0")
RULE = "etc/udev/rules.d/70-vfio-intx-0000-00-10.0.rules"


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    return nic_host(tmp_path / "host", net=("eth0",)).tree


def persisted(tree: FakeTree, *, remove: bool = False, dry_run: bool = False, force: bool = False) -> int:
    words = argparse.Namespace(bdf="00:10.0", remove=remove, dry_run=dry_run, force=force)
    return persist.run(words, tree.root)


def test_what_the_host_lives_on_is_not_taken_at_the_next_boot_either(tree: FakeTree) -> None:
    route = "Iface Destination Gateway Flags\neth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n"
    tree.link("sys/class/net/eth0", "sys/devices/pci0000:00/0000:00:10.0/net/eth0")
    tree.write("proc/net/route", route)
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match="default route") as caught:
            persisted(tree, dry_run=dry_run)
        assert "--force" in (caught.value.hint or "")
    assert not (tree.path / RULE).exists()
    assert persisted(tree, force=True) == 0
    assert (tree.path / RULE).exists()


def test_the_rule_matches_address_and_ids_and_names_no_twin(tree: FakeTree) -> None:
    persisted(tree)
    text = (tree.path / RULE).read_text()
    for part in (
        'KERNEL=="0000:00:10.0"',
        '"0x8086"',
        '"0x100e"',
        '"0x1af4"',
        '"0x1100"',
        'driver_override}="vfio-pci"',
    ):
        assert part in text
    assert "new_id" not in text


def test_it_is_shown_before_it_is_written_and_a_dry_run_writes_nothing(
    tree: FakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    persisted(tree, dry_run=True)
    assert not (tree.path / RULE).exists()
    shown = capsys.readouterr().out
    persisted(tree)
    assert (tree.path / RULE).read_text() in shown


def test_twice_is_as_good_as_once_both_ways(tree: FakeTree, capsys: pytest.CaptureFixture[str]) -> None:
    persisted(tree)
    persisted(tree)
    assert "already so" in capsys.readouterr().out
    persisted(tree, remove=True)
    assert not list((tree.path / "etc/udev/rules.d").iterdir())
    persisted(tree, remove=True)
    assert "already so" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("usr/sbin/update-initramfs", "update-initramfs -u"),
        ("usr/bin/dracut", "dracut -f"),
        ("usr/bin/mkinitcpio", "mkinitcpio -P"),
        ("", "make the initramfs anew"),
    ],
)
def test_that_the_initramfs_may_come_before_the_rule_is_said_with_the_command(
    tool: str, command: str, tree: FakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    if tool:
        tree.write(tool, "")
    for words in ({"dry_run": True}, {}, {"remove": True}):
        persisted(tree, **words)
        said = capsys.readouterr().out.splitlines()
        assert [line for line in said if command in line and "initramfs" in line] != []
    persisted(tree, remove=True)
    assert "initramfs" not in capsys.readouterr().out


def test_a_file_of_somebody_else_is_neither_overwritten_nor_removed(tree: FakeTree) -> None:
    tree.write(RULE, "# mine\n")
    for removing in (False, True):
        with pytest.raises(RefusedError, match="not of our making"):
            persisted(tree, remove=removing)
    (tree.path / RULE).unlink()
    (tree.path / RULE).symlink_to("/dev/null")
    with pytest.raises(RefusedError):
        persisted(tree)


def test_another_owner_is_named(tree: FakeTree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.write("etc/driverctl.d/pci-0000:00:10.0", "vfio-pci\n")
    persisted(tree)
    assert "/etc/driverctl.d/pci-0000:00:10.0: driverctl" in capsys.readouterr().err
    assert (tree.path / "etc/driverctl.d/pci-0000:00:10.0").read_text() == "vfio-pci\n"


def test_a_rule_that_cannot_be_written_is_told(tree: FakeTree) -> None:
    tree.write("etc/udev/rules.d", "a file")
    with pytest.raises(WorldError):
        persisted(tree)


def test_only_a_name_of_ours_is_ever_written(tree: FakeTree) -> None:
    with pytest.raises(ValueError, match="not the name of a rule"):
        install(tree.root, RuleFile("/etc/passwd", "x"))


def test_install_and_remove_answer_whether_anything_changed(tree: FakeTree) -> None:
    rule = rule_for(take_snapshot(tree.root).function(BDF))
    assert [install(tree.root, rule), install(tree.root, rule)] == [True, False]
    assert installed(tree.root, BDF) == rule
    assert [remove(tree.root, BDF), remove(tree.root, BDF)] == [True, False]


def test_what_only_a_running_host_forbids_is_what_the_rule_is_for(tmp_path: Path) -> None:
    """bind and INTX015 send the user here: a driver that must not be unbound, and a display that is drawn on."""
    tree = nic_host(tmp_path, driver="radeon", class_code=0x030000).tree
    tree.link("sys/class/drm/card0", "sys/devices/pci0000:00/0000:00:10.0/drm/card0")
    tree.process(812, "Xorg", ["/dev/dri/card0"])
    snapshot = take_snapshot(tree.root)
    assert len(refusals(snapshot.function(BDF), snapshot)) == 2
    assert persisted(tree) == 0
    assert (tree.path / RULE).exists()
