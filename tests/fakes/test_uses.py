"""Who uses and who claims a function: read from the host's own tables and other tools' files, never written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.kernel import FakeKernel, nic_host
from vfio_intx.errors import RefusedError
from vfio_intx.host.snapshot import Snapshot, take_snapshot
from vfio_intx.names import Bdf
from vfio_intx.wiring.drivers import bind

BDF = Bdf.parse("0000:00:10.0")
HERE = f"sys/devices/pci0000:00/{BDF}"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return nic_host(tmp_path / "host", net=("eth0",))


def interface(kernel: FakeKernel, name: str = "eth0", under: str = "") -> None:
    (kernel.tree.path / f"{HERE}{under}/net/{name}").mkdir(parents=True, exist_ok=True)
    kernel.tree.link(f"sys/class/net/{name}", f"{HERE}{under}/net/{name}")


def disk(kernel: FakeKernel, name: str, number: str, under: str) -> None:
    kernel.tree.write(f"{under}/{name}/dev", number + "\n")
    kernel.tree.link(f"sys/class/block/{name}", f"{under}/{name}")


def snapshot(kernel: FakeKernel) -> Snapshot:
    return take_snapshot(kernel.root)


def refused(kernel: FakeKernel, tmp_path: Path, says: str) -> None:
    """bind refuses and says so, nothing is touched, --force binds."""
    with pytest.raises(RefusedError, match=says) as caught:
        bind(kernel, tmp_path / "state", [BDF])
    assert "--force" in (caught.value.hint or "")
    assert kernel.log == []
    bind(kernel, tmp_path / "state", [BDF], force=True)
    assert kernel.state(str(BDF)) == ("vfio-pci", "vfio-pci")


ROUTES = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"


def test_a_nic_with_the_default_route(kernel: FakeKernel, tmp_path: Path) -> None:
    interface(kernel)
    kernel.tree.write("proc/net/route", ROUTES + "eth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n")
    refused(kernel, tmp_path, r"carries the default route \(eth0\)")


def test_a_nic_with_an_address(kernel: FakeKernel, tmp_path: Path) -> None:
    interface(kernel)
    kernel.tree.write("proc/net/route", ROUTES + "eth0 0000000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n")
    refused(kernel, tmp_path, "has an address")


def test_a_virtio_nic_whose_interface_lies_deeper(kernel: FakeKernel, tmp_path: Path) -> None:
    interface(kernel, "ens3", under="/virtio0")
    kernel.tree.write("proc/net/if_inet6", "fd00000000000000 02 40 00 80 ens3\n")
    refused(kernel, tmp_path, "IPv6 address")


def test_a_nic_in_a_bridge(kernel: FakeKernel, tmp_path: Path) -> None:
    interface(kernel)
    kernel.tree.link(f"{HERE}/net/eth0/master", "sys/class/net/br0")
    refused(kernel, tmp_path, "bridge, bond or team")


def test_a_link_local_address_and_another_nics_route_are_no_reason(kernel: FakeKernel, tmp_path: Path) -> None:
    interface(kernel)
    kernel.tree.write("proc/net/if_inet6", "fe80000000000000 02 40 20 80 eth0\n")
    kernel.tree.write("proc/net/route", ROUTES + "eth1 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n")
    assert snapshot(kernel).uses == {}
    bind(kernel, tmp_path / "state", [BDF])


def test_a_controller_with_a_mounted_disk(kernel: FakeKernel, tmp_path: Path) -> None:
    disk(kernel, "sda1", "8:1", f"{HERE}/ata1/host0/block/sda")
    kernel.tree.write("proc/self/mountinfo", "29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n")
    refused(kernel, tmp_path, r"holds / \(sda1\)")


def test_a_controller_with_a_disk_under_a_mounted_volume(kernel: FakeKernel, tmp_path: Path) -> None:
    disk(kernel, "sda2", "8:2", f"{HERE}/ata1/host0/block/sda")
    disk(kernel, "dm-0", "254:0", "sys/devices/virtual/block")
    (kernel.tree.path / f"{HERE}/ata1/host0/block/sda/sda2/holders/dm-0").mkdir(parents=True)
    kernel.tree.write("proc/self/mountinfo", "29 1 254:0 / /srv rw - ext4 /dev/mapper/x rw\n")
    refused(kernel, tmp_path, r"holds /srv \(dm-0\)")


def test_holders_that_point_in_a_circle_end(kernel: FakeKernel) -> None:
    disk(kernel, "sda", "8:0", f"{HERE}/block")
    (kernel.tree.path / f"{HERE}/block/sda/holders/sda").mkdir(parents=True)
    assert snapshot(kernel).uses == {}


def test_a_controller_with_swap(kernel: FakeKernel, tmp_path: Path) -> None:
    disk(kernel, "sda3", "8:3", f"{HERE}/ata1/block")
    kernel.tree.write("proc/swaps", "Filename Type Size Used Priority\n/dev/sda3 partition 1 0 -2\n")
    refused(kernel, tmp_path, "holds swap")


def test_a_serial_card_with_the_console(kernel: FakeKernel, tmp_path: Path) -> None:
    (kernel.tree.path / f"{HERE}/tty/ttyS4").mkdir(parents=True)
    kernel.tree.link("sys/class/tty/ttyS4", f"{HERE}/tty/ttyS4")
    kernel.tree.write("proc/consoles", "ttyS4                -W- (EC p a)    4:68\n../x -W- (E) 4:1\n")
    refused(kernel, tmp_path, r"console of the host \(ttyS4\)")


def test_the_display_that_the_firmware_booted_with(tmp_path: Path) -> None:
    kernel = nic_host(tmp_path / "host", class_code=0x030000, extra={"boot_vga": "1"})
    refused(kernel, tmp_path, "firmware booted with")


def test_a_driver_that_is_unsafe_to_unbind(tmp_path: Path) -> None:
    refused(nic_host(tmp_path / "host", driver="radeon"), tmp_path, "unsafe to unbind")


CLAIMS = {
    "driverctl": ("etc/driverctl.d/pci-0000:00:10.0", "vfio-pci\n"),
    "libvirt": (
        "etc/libvirt/qemu/win10.xml",
        "<domain><devices><hostdev mode='subsystem' type='pci' managed='yes'>\n<source>\n"
        "<address domain='0x0000' bus='0x00' slot='0x10' function='0x0'/></source>\n</hostdev></devices></domain>",
    ),
    "proxmox": ("etc/pve/qemu-server/101.conf", "cores: 2\nhostpci0: 0000:00:10,pcie=1\n"),
    "proxmox mapping": ("etc/pve/mapping/pci.cfg", "nic\n\tmap id=8086:100e,node=a,path=0000:00:10.0\n"),
    "modprobe.d": ("etc/modprobe.d/vfio.conf", "# x\noptions vfio-pci ids=1234:5678,8086:100e disable_vga=1\n"),
    "modprobe.d softdep": ("etc/modprobe.d/vfio.conf", "softdep e1000 pre: vfio-pci\n"),
    "kernel command line": ("proc/cmdline", "quiet vfio-pci.ids=8086:100e\n"),
    "modprobe.d over two lines": ("etc/modprobe.d/vfio.conf", "options vfio_pci \\\n  ids=8086:100e\n"),
    "modprobe.d with the subsystem": ("etc/modprobe.d/vfio.conf", "options vfio-pci ids=8086:100e:1af4:1100\n"),
    "modprobe.d with a class": (
        "etc/modprobe.d/a.conf",
        "options vfio-pci ids=8086:ffffffff:ffffffff:ffffffff:020000:ff0000\n",
    ),
    "kernel command line in quotes": ("proc/cmdline", 'quiet "vfio-pci.ids=1234:5678,8086:100e" vfio_pci.ids="zz"\n'),
    "kernel command line for pci-stub": ("proc/cmdline", "quiet pci-stub.ids=8086:100e\n"),
    "libvirt interface": (
        "etc/libvirt/qemu/win10.xml",
        "<domain><devices><interface type='hostdev' managed='yes'>\n<mac address='52:54:00:00:00:01'/><source>\n"
        "<address type='pci' domain='0x0000' bus='0x00' slot='0x10' function='0x0'/></source>\n"
        "</interface></devices></domain>",
    ),
    "proxmox mapping of several": (
        "etc/pve/mapping/pci.cfg",
        "nic\n\tmap id=8086:100e,node=a,path=0000:00:0f.0;0000:00:10.0\n",
    ),
    "udev by ids": (
        "etc/udev/rules.d/10-vfio.rules",
        'ATTR{vendor}=="0x8086", ATTR{device}=="0x100e", ATTR{driver_override}="vfio-pci"\n',
    ),
    "udev": (
        "etc/udev/rules.d/10-vfio.rules",
        'KERNEL=="0000:00:10.0", SUBSYSTEM=="pci", \\\n  ATTR{driver_override}="vfio-pci"\n',
    ),
    "vfio-intx": ("var/lib/vfio-intx/0000:00:10.0.record", "x"),
    "vfio-intx persist": (
        "etc/udev/rules.d/70-vfio-intx-0000-00-10.0.rules",
        'KERNEL=="0000:00:10.0", ATTR{driver_override}="vfio-pci"\n',
    ),
}


@pytest.mark.parametrize("owner", CLAIMS)
def test_a_claim_names_its_owner_and_its_file(kernel: FakeKernel, owner: str) -> None:
    name, text = CLAIMS[owner]
    kernel.tree.write("proc/sys/kernel/hostname", "a.example.org\n")
    kernel.tree.write(name, text)
    ((bdf, (claim,)),) = snapshot(kernel).claims.items()
    assert bdf == BDF
    assert owner.startswith(claim.owner)
    assert claim.source == f"/{name}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("etc/driverctl.d/pci-0000:00:11.0", "vfio-pci\n"),
        ("etc/driverctl.d/rubbish", "\x1b[0m"),
        ("etc/libvirt/qemu/a.xml", "<address domain='0x0000' bus='0x00' slot='0x10' function='0x0'/>"),
        ("etc/pve/qemu-server/101.conf", "hostpci0: mapping=x\nhostpci1: 0000:00:11\n"),
        (
            "etc/modprobe.d/vfio.conf",
            "#options vfio-pci ids=8086:100e\noptions snd ids=8086:100e\noptions vfio-pci ids=zz\n",
        ),
        ("proc/cmdline", "vfio-pci.ids=\n"),
        ("proc/cmdline", "quiet -- vfio-pci.ids=8086:100e\n"),
        ("etc/modprobe.d/a.conf", "options vfio-pci ids=8086:100e:1af4:1101\n"),
        ("etc/modprobe.d/a.conf", "options vfio-pci ids=8086:ffffffff:ffffffff:ffffffff:030000:ff0000\n"),
        ("etc/modprobe.d/a.conf", "softdep e1000 post: vfio-pci\n"),
        ("etc/pve/qemu-server/101.conf", "cores: 2\n\n[before-update]\nhostpci0: 0000:00:10,pcie=1\n"),
        ("etc/pve/mapping/pci.cfg", "nic\n\tmap id=8086:100e,node=b,path=0000:00:10.0\n"),
        (
            "etc/libvirt/qemu/a.xml",
            "<hostdev mode='subsystem' type='usb'><source><address bus='0' device='16'/></source></hostdev>"
            "<interface type='network'><address type='pci' domain='0x0000' bus='0x00' slot='0x10' function='0x0'/>"
            "</interface>",
        ),
        (
            "etc/udev/rules.d/a.rules",
            'ATTR{vendor}=="0x8086", ATTR{device}=="0x100f", ATTR{driver_override}="vfio-pci"\n',
        ),
        ("etc/udev/rules.d/a.rules", '#KERNEL=="0000:00:10.0", ATTR{driver_override}="vfio-pci"\n'),
        ("etc/udev/rules.d/a.rules", 'KERNEL=="0000:00:10.0", ATTR{power/control}="on"\n'),
        ("etc/udev/rules.d/a.rules", 'KERNEL=="0000:00:10.01", ATTR{driver_override}="vfio-pci"\n'),
    ],
)
def test_what_speaks_of_another_function_or_is_rubbish_is_no_claim(kernel: FakeKernel, name: str, text: str) -> None:
    kernel.tree.write("proc/sys/kernel/hostname", "a.example.org\n")
    kernel.tree.write(name, text)
    assert snapshot(kernel).claims == {}


def test_a_display_that_a_program_draws_on(kernel: FakeKernel, tmp_path: Path) -> None:
    """Taking a GPU from its driver below a running display server has hung hosts, whatever the driver."""
    for name in ("card0", "renderD128", "card0-DP-1"):
        (kernel.tree.path / f"{HERE}/drm/{name}").mkdir(parents=True)
        kernel.tree.link(f"sys/class/drm/{name}", f"{HERE}/drm/{name}")
    assert BDF not in snapshot(kernel).uses
    kernel.tree.write("proc/812/comm", "Xorg\n")
    (kernel.tree.path / "proc/812/fd").mkdir()
    (kernel.tree.path / "proc/812/fd/5").symlink_to("/dev/dri/card0")
    refused(kernel, tmp_path, r"draws for process 812 \(Xorg\)")


def test_a_function_with_virtual_ones(kernel: FakeKernel, tmp_path: Path) -> None:
    for number in range(2):
        (kernel.tree.path / f"{HERE}/virtfn{number}").symlink_to(f"../0000:00:10.{number + 1}")
    refused(kernel, tmp_path, "has 2 virtual functions")


@pytest.mark.parametrize("upper", ["eth0.10", "macvtap0"])
def test_a_nic_below_a_vlan_or_macvlan(kernel: FakeKernel, tmp_path: Path, upper: str) -> None:
    """The address and the route are the upper interface's: nothing in the tables names the card's own."""
    interface(kernel)
    kernel.tree.link(f"{HERE}/net/eth0/upper_{upper}", f"sys/class/net/{upper}")
    kernel.tree.write("proc/net/route", ROUTES + f"{upper} 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n")
    refused(kernel, tmp_path, rf"carries {upper} \(eth0\)")


def test_a_mounted_btrfs_which_the_mount_table_knows_by_an_anonymous_device(kernel: FakeKernel, tmp_path: Path) -> None:
    disk(kernel, "sda2", "8:2", f"{HERE}/ata1/host0/block/sda")
    kernel.tree.write("proc/self/mountinfo", "29 1 0:25 /@ / rw,relatime - btrfs /dev/sdq1 rw,subvol=/@\n")
    kernel.tree.link("sys/fs/btrfs/0a1b/devices/sda2", f"{HERE}/ata1/host0/block/sda/sda2")
    (kernel.tree.path / "sys/fs/btrfs/features").mkdir()
    refused(kernel, tmp_path, r"is part of a mounted btrfs \(sda2\)")


def test_a_file_system_with_an_anonymous_device_is_known_by_its_source(kernel: FakeKernel, tmp_path: Path) -> None:
    disk(kernel, "sda2", "8:2", f"{HERE}/ata1/host0/block/sda")
    row = "29 1 0:25 / /data\\040x rw,relatime shared:1 master:2 - bcachefs /dev/sdz:/dev/sda2 rw\n"
    kernel.tree.write("proc/self/mountinfo", row)
    refused(kernel, tmp_path, r"holds /data\\040x \(sda2\)")


@pytest.mark.parametrize("holder", ["md0", "dm-3", "bcache0"])
def test_a_disk_below_an_array_or_a_volume_that_is_active_and_not_mounted(
    kernel: FakeKernel, tmp_path: Path, holder: str
) -> None:
    disk(kernel, "sdb", "8:16", f"{HERE}/ata1/host0/block")
    disk(kernel, holder, "9:0", "sys/devices/virtual/block")
    (kernel.tree.path / f"{HERE}/ata1/host0/block/sdb/holders/{holder}").mkdir(parents=True)
    refused(kernel, tmp_path, rf"carries {holder}, which is active \(sdb\)")


def test_a_member_of_an_imported_zfs_pool(kernel: FakeKernel, tmp_path: Path) -> None:
    disk(kernel, "sdb1", "8:17", f"{HERE}/ata1/host0/block/sdb")
    kernel.tree.write("run/udev/data/b8:17", "I:5\nE:ID_FS_LABEL=tank\nE:ID_FS_TYPE=zfs_member\n")
    kernel.tree.write("proc/spl/kstat/zfs/arcstats", "")
    assert snapshot(kernel).uses == {}
    (kernel.tree.path / "proc/spl/kstat/zfs/other").mkdir()
    assert snapshot(kernel).uses == {}
    (kernel.tree.path / "proc/spl/kstat/zfs/tank").mkdir()
    refused(kernel, tmp_path, r"is part of the ZFS pool tank \(sdb1\)")


def test_an_nvme_disk_that_belongs_to_a_subsystem_and_not_to_its_controller(kernel: FakeKernel, tmp_path: Path) -> None:
    """With native multipath the disk is a virtual device; its controllers are links beside it."""
    subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    disk(kernel, "nvme0n1p2", "259:2", f"{subsystem}/nvme0n1")
    kernel.tree.link(f"{subsystem}/nvme0", f"{HERE}/nvme/nvme0")
    kernel.tree.link("sys/class/nvme-subsystem/nvme-subsys0", subsystem)
    (kernel.tree.path / f"{HERE}/nvme/nvme0").mkdir(parents=True)
    kernel.tree.link("sys/class/nvme/nvme0", f"{HERE}/nvme/nvme0")
    kernel.tree.write("proc/self/mountinfo", "29 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n")
    refused(kernel, tmp_path, r"holds / \(nvme0n1p2\)")


def test_a_file_of_etc_hides_the_one_of_its_name_in_lib(kernel: FakeKernel) -> None:
    kernel.tree.write("lib/modprobe.d/vfio.conf", "options vfio-pci ids=8086:100e\n")
    assert len(snapshot(kernel).claims[BDF]) == 1
    kernel.tree.write("etc/modprobe.d/vfio.conf", "# none\n")
    assert snapshot(kernel).claims == {}


def test_a_softdep_names_a_module_whose_driver_is_spelt_otherwise(tmp_path: Path) -> None:
    kernel = nic_host(tmp_path / "host", driver="ehci-pci")
    kernel.tree.write("etc/modprobe.d/a.conf", "softdep ehci_pci pre: x vfio_pci post: y\n")
    assert [claim.text for claim in snapshot(kernel).claims[BDF]] == ["makes ehci-pci load after vfio-pci"]
