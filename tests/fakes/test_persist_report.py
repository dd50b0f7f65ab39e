"""The udev rule that survives a boot, and the archive that leaves the host."""

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
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.cli import check, persist, report, scan
from vfio_intx.cli.scan import unknown_facts
from vfio_intx.diagnose.prediction import predict_all
from vfio_intx.diagnose.report import CONTENTS
from vfio_intx.errors import MissingError, RefusedError, UsageError, WorldError
from vfio_intx.host import replay
from vfio_intx.host.redact import Redactor
from vfio_intx.host.replay import read_snapshot
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


HOSTDEV = """<domain><devices><hostdev mode='subsystem' type='pci'><source>
<address domain='0x0000' bus='0x00' slot='0x10' function='0x0'/></source></hostdev></devices></domain>"""


def check_arguments(*words: str) -> argparse.Namespace:
    """Those of ``check 00:10.0 --json`` with these words."""
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return parser.parse_args(["00:10.0", "--json", *words])


def replayed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, object]]:
    """Status of ``check --json`` with these words, and what it printed."""
    capsys.readouterr()
    status = check.run(check_arguments(*words))
    printed: dict[str, object] = json.loads(capsys.readouterr().out)
    return status, printed


@pytest.mark.parametrize("name", ["payroll-acme", "a", "domain", "büro"])
def test_the_name_of_a_vm_that_claims_a_function_is_replaced(
    tree: FakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    tree.write(f"etc/libvirt/qemu/{name}.xml", HOSTDEV)
    files = archive(tree, tmp_path / "r.tar.gz")
    ((_, (claim,)),) = json.loads(files["snapshot.json"])["claims"]
    assert claim["owner"] == "libvirt"
    assert claim["text"] == f"domain {claim['vm']} passes it through"
    assert claim["source"] == f"/etc/libvirt/qemu/{claim['vm']}.xml"
    assert claim["vm"].startswith("vm-")
    assert claim["vm"] in files["findings.json"]
    if len(name) > 1 and name != "domain":
        assert name not in "\n".join(files.values())
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text(files["snapshot.json"])
    assert claim["vm"] in json.dumps(replayed(capsys, "--from", str(snapshot)))


def test_the_number_of_a_proxmox_vm_is_replaced_and_no_other_number(tree: FakeTree, tmp_path: Path) -> None:
    tree.write("etc/pve/qemu-server/100.conf", "hostpci0: 00:10.0\n")
    tree.interrupts({21: (100, "IO-APIC 21-fasteoi", "eth0")})
    files = archive(tree, tmp_path / "r.tar.gz")
    ((_, (claim,)),) = json.loads(files["snapshot.json"])["claims"]
    assert claim["text"] == f"VM {claim['vm']} passes it through"
    assert "100.conf" not in files["snapshot.json"]
    assert " 100 " in files["interrupts.txt"]


def test_names_of_interfaces_are_replaced_and_a_handler_is_still_known_by_them(
    tree: FakeTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.link("sys/class/net/eth0", "sys/devices/pci0000:00/0000:00:10.0/net/eth0")
    tree.write("proc/net/route", "Iface Destination Gateway Flags\neth0 00000000 0100000A 0003\n")
    tree.interrupts({21: (100, "IO-APIC 21-fasteoi", "eth0, eth0-TxRx-0")})
    tree.write("dev/kmsg", "6,1,1000000,-;e1000 0000:00:10.0 eth0: INTx on eth0-TxRx-0, left lan%eth0\n")
    files = archive(tree, tmp_path / "r.tar.gz")
    assert "eth0" not in "\n".join(files.values())
    table = json.loads(files["snapshot.json"])
    (interface,) = table["functions"][0]["interfaces"]["value"]
    assert table["actions"]["21"]["value"] == [interface, f"{interface}-TxRx-0"]
    assert f"({interface})" in files["snapshot.json"]
    assert f"{interface}: INTx on {interface}-TxRx-0, left lan%{interface}" in files["kernel-log.txt"]
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text(files["snapshot.json"])
    status, there = replayed(capsys, "--from", str(snapshot))
    assert check.run(check_arguments(), tree.root) == status
    here = json.loads(capsys.readouterr().out)
    assert json.loads(json.dumps(here).replace("eth0", interface)) == there


@pytest.mark.parametrize("name", ["e1000", "D0", "flr", "config", "network"])
def test_a_name_that_is_also_a_word_of_the_kernel_costs_no_fact(tree: FakeTree, tmp_path: Path, name: str) -> None:
    tree.write("proc/sys/kernel/hostname", name + "\n")
    before = take_snapshot(tree.root).function(BDF)
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text(archive(tree, tmp_path / "r.tar.gz")["snapshot.json"])
    after = read_snapshot(snapshot).function(BDF)
    assert (after.driver, after.power, after.reset_methods, after.files, after.config) == (
        before.driver,
        before.power,
        before.reset_methods,
        before.files,
        before.config,
    )


@pytest.mark.parametrize(
    "address", ["2001:db8::1", "fe80::5054:ff:fe12:3456", "2001:DB8:0:0:1:2:3:4", "::ffff:192.0.2.7", "::1", "fd00::"]
)
@pytest.mark.parametrize("around", ["{}", "from {} to", "[{}]:443", "addr={}/64", "({}),", "{}%eth0", "{}: refused"])
def test_ipv6_addresses_are_replaced(address: str, around: str) -> None:
    redactor = Redactor(key=b"k")
    before, after = around.split("{}")
    cleaned = redactor.clean(around.format(address))
    assert cleaned == f"{before}{redactor.mark('ip', address)}{after}"


@pytest.mark.parametrize(
    "text",
    [
        "0000:00:10.0",
        "10000:e1:00.0 and 8086:100e",
        "Request device [00:10.0] fault addr 0xfee00000",
        "12:34:56",
        "vfio::intx",
        "a::b::c",
        "ends with a colon: then goes on",
        "rule :: note",
        "std::cafe",
    ],
)
def test_what_only_looks_like_an_address_stays(text: str) -> None:
    assert Redactor(["myhost"], key=b"k").clean(text) == text


@given(st.text(max_size=200))
def test_cleaning_never_fails_and_cleaning_twice_changes_nothing_more(text: str) -> None:
    redactor = Redactor(["myhost"], key=b"k")
    once = redactor.clean(text + " 52:54:00:aa:bb:cc myhost 10.0.0.1")
    assert "52:54:00" not in once
    assert "10.0.0.1" not in once
    assert not once.endswith("myhost 10.0.0.1")


def test_equal_names_stay_equal_and_the_key_makes_them_unguessable() -> None:
    one, other = Redactor(key=b"1"), Redactor(key=b"2")
    assert one.clean("10.0.0.1 10.0.0.1").split()[0] == one.clean("10.0.0.1")
    assert one.clean("10.0.0.1") != other.clean("10.0.0.1")


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


def test_names_of_mount_points_and_pools_are_replaced(tree: FakeTree, tmp_path: Path) -> None:
    place = "sys/devices/pci0000:00/0000:00:10.0/ata1/block"
    for name, number in (("sda", "8:0"), ("sdb", "8:16"), ("sdc", "8:32")):
        tree.write(f"{place}/{name}/dev", number + "\n")
        tree.link(f"sys/class/block/{name}", f"{place}/{name}")
    rows = ("29 1 8:0 / / rw - ext4 /dev/sda rw", "30 1 8:16 / /srv/acme-payroll rw - ext4 /dev/sdb rw")
    tree.write("proc/self/mountinfo", "\n".join(rows) + "\n")
    tree.write("run/udev/data/b8:32", "E:ID_FS_LABEL=acme-tank\nE:ID_FS_TYPE=zfs_member\n")
    (tree.path / "proc/spl/kstat/zfs/acme-tank").mkdir(parents=True)
    files = archive(tree, tmp_path / "r.tar.gz")
    assert "acme" not in "\n".join(files.values())
    ((_, uses),) = json.loads(files["snapshot.json"])["uses"]
    assert uses[0]["text"] == "holds / (sda)"
    assert uses[1]["text"] == f"holds {uses[1]['name']} (sdb)"
    assert uses[2]["source"] == f"/proc/spl/kstat/zfs/{uses[2]['name']}"
    assert uses[2]["name"].startswith("pool-")


def test_the_name_of_a_vm_whose_file_could_not_be_read_is_left_out(tree: FakeTree, tmp_path: Path) -> None:
    for number in range(9):
        (tree.path / f"etc/libvirt/qemu/acme{number}.xml").mkdir(parents=True)
    files = archive(tree, tmp_path / "r.tar.gz")
    assert json.loads(files["snapshot.json"])["unread"] == [["/etc/libvirt/qemu", "Is a directory"]]
    assert "acme" not in "\n".join(files.values())
    snapshot = take_snapshot(tree.root)
    (prediction,) = predict_all(snapshot, [snapshot.function(BDF)])
    assert unknown_facts(prediction)["claims"].endswith("acme3.xml: Is a directory, and 5 more")


def test_who_built_the_kernel_is_left_out(tree: FakeTree, tmp_path: Path) -> None:
    """Who builds kernels does so as himself, on a machine with a name."""
    version = "Linux version 6.12.40 (alice@forge.acme.example) (gcc (Debian 14.2.0-19) 14.2.0) #1 SMP Debian 6.12.40-1"
    tree.write("proc/version", version + "\n")
    files = archive(tree, tmp_path / "r.tar.gz")
    text = "\n".join(files.values())
    assert "alice" not in text
    assert "forge" not in text
    assert json.loads(files["snapshot.json"])["kernel"]["version"]["value"].endswith("#1 SMP Debian 6.12.40-1")
