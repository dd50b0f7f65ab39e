"""The archive of report: what is listed, what is in it, and that it stands for the host that made it."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import resource
import shutil
import signal
import tarfile
from pathlib import Path

import pytest

from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.cli import check, report, scan
from vfio_intx.diagnose.report import CONTENTS
from vfio_intx.errors import MissingError, UsageError, WorldError
from vfio_intx.host import replay
from vfio_intx.host.replay import read_snapshot
from vfio_intx.names import Bdf

BDF = Bdf.parse("0000:00:10.0")


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    return nic_host(tmp_path / "host", net=("eth0",)).tree


def identified(tree: FakeTree) -> None:
    tree.write("proc/sys/kernel/hostname", "kernel.example.org\n")
    tree.write("proc/cmdline", "root=UUID=11111111-2222-3333-4444-555555555555 intel_iommu=on ip=192.0.2.7 quiet\n")
    tree.write("etc/libvirt/qemu/secret.xml", "")
    tree.write(
        "dev/kmsg",
        "6,1,1000000,-;vfio-pci 0000:00:10.0: MAC 52:54:00:12:34:56 on kernel.example.org Serial Number: ABC123\n"
        "6,2,2000000,-;DMAR: [DMA Read] Request device [00:10.0] fault addr 0xfee00000 from 192.0.2.7\n",
    )


def archive(tree: FakeTree, path: Path) -> dict[str, str]:
    assert report.run(argparse.Namespace(output=path, dry_run=False), tree.root) == 0
    with tarfile.open(path) as opened:
        files = {member.name.rpartition("/")[2]: opened.extractfile(member) for member in opened.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def test_nothing_in_the_archive_tells_whose_host_it_is(tree: FakeTree, tmp_path: Path) -> None:
    identified(tree)
    files = archive(tree, tmp_path / "report.tar.gz")
    assert sorted(files) == sorted(CONTENTS)
    whole = "\n".join(files.values())
    for secret in ("52:54:00:12:34:56", "example.org", "ABC123", "192.0.2.7", "11111111-2222", "UUID"):
        assert secret not in whole
    assert "intel_iommu=on" in whole
    assert "mac-" in files["kernel-log.txt"]
    assert (tmp_path / "report.tar.gz").stat().st_mode & 0o077 == 0


def test_what_is_in_it_is_listed_and_a_dry_run_writes_nothing(
    tree: FakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.run(argparse.Namespace(output=tmp_path / "r.tar.gz", dry_run=True), tree.root)
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("snapshot.json", "kernel-log.txt", "MAC and IP addresses"))
    assert not (tmp_path / "r.tar.gz").exists()


def test_an_archive_that_is_there_is_not_overwritten_and_nothing_is_listed_as_if_it_were(
    tree: FakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.tar.gz").write_text("mine")
    for place in (tmp_path / "r.tar.gz", tmp_path / "nowhere" / "r.tar.gz"):
        with pytest.raises(WorldError, match="cannot be made"):
            archive(tree, place)
        assert capsys.readouterr().out == ""
    assert (tmp_path / "r.tar.gz").read_text() == "mine"


def test_a_report_that_comes_to_nothing_leaves_no_archive(tree: FakeTree, tmp_path: Path) -> None:
    shutil.rmtree(tree.path / "sys/bus/pci")
    with pytest.raises(MissingError, match="no PCI devices"):
        archive(tree, tmp_path / "r.tar.gz")
    assert not (tmp_path / "r.tar.gz").exists()


def packed(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for member, content in members:
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def test_the_archive_serves_as_the_snapshot_in_it_does(
    tree: FakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text(archive(tree, tmp_path / "r.tar.gz")["snapshot.json"])
    capsys.readouterr()
    told = []
    for file in (snapshot, tmp_path / "r.tar.gz"):
        scan.run(argparse.Namespace(bdf=[], json=True, snapshot=file))
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert str(BDF) in told[0]


def test_an_archive_cut_anywhere_is_refused(tree: FakeTree, tmp_path: Path) -> None:
    archive(tree, tmp_path / "r.tar.gz")
    whole = (tmp_path / "r.tar.gz").read_bytes()
    for length in range(2, len(whole) - 1, 97):
        (tmp_path / "cut.tar.gz").write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"cut\.tar\.gz"):
            read_snapshot(tmp_path / "cut.tar.gz")


def test_an_archive_without_a_snapshot_or_with_a_sly_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vfio-intx-report/snapshot.json"
    link, folder, other = tarfile.TarInfo(name), tarfile.TarInfo(name), tarfile.TarInfo("x")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "snapshot.json", tarfile.DIRTYPE
    for index, member in enumerate((link, folder, other)):
        with pytest.raises(UsageError, match=r"snapshot\.json"):
            read_snapshot(packed(tmp_path / f"{index}.tgz", (member, b"")))
    (tmp_path / "plain.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(UsageError, match="no whole archive"):
        read_snapshot(tmp_path / "plain.gz")
    monkeypatch.setattr(replay, "_LONGEST", 1 << 20)
    with pytest.raises(UsageError, match="more than 1 MiB"):
        read_snapshot(packed(tmp_path / "bomb.tgz", (tarfile.TarInfo(name), bytes(1 << 21))))


def test_where_there_is_no_room_the_half_of_an_archive_is_taken_away(
    tree: FakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(WorldError, match=r"r\.tar\.gz cannot be written: File too large") as caught:
            archive(tree, tmp_path / "r.tar.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.hint
    assert not (tmp_path / "r.tar.gz").exists()


def test_scan_and_check_say_of_the_snapshot_what_they_say_of_the_host(
    tree: FakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.add(FakeFunction("0000:00:10.1", driver="snd_hda_intel", group=4, irq=21))
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text(archive(tree, tmp_path / "r.tar.gz")["snapshot.json"])
    capsys.readouterr()
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    for words in (["00:10.0", "--json"], ["00:10.0"]):
        status = check.run(parser.parse_args(words), tree.root)
        there = capsys.readouterr().out
        assert check.run(parser.parse_args([*words, "--from", str(snapshot)])) == status == 2
        assert capsys.readouterr().out == there
    scan.run(argparse.Namespace(bdf=[], json=True, snapshot=None), tree.root)
    (mark,) = read_snapshot(snapshot).function(BDF).interfaces.get(())
    there = json.loads(capsys.readouterr().out.replace("eth0", mark))
    scan.run(argparse.Namespace(bdf=[], json=True, snapshot=snapshot))
    assert json.loads(capsys.readouterr().out) == there
