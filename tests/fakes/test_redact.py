"""What is left out of a report, or replaced: names, addresses, whoever built the kernel."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.kernel import nic_host
from tests.fakes.test_report import archive
from tests.fakes.tree import FakeTree
from vfio_intx.cli import check
from vfio_intx.cli.scan import unknown_facts
from vfio_intx.diagnose.prediction import predict_all
from vfio_intx.host.redact import Redactor
from vfio_intx.host.replay import read_snapshot
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf

BDF = Bdf.parse("0000:00:10.0")


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    return nic_host(tmp_path / "host", net=("eth0",)).tree


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
