"""The rules: the real cases, what each must and must not find, and what they rest on."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.cases import CASES, Case, look
from tests.fakes.kernel import nic_host
from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.chain.finding import Severity
from vfio_intx.cli import check, explain
from vfio_intx.cli.main import main
from vfio_intx.cli.scan import unknown_facts
from vfio_intx.diagnose.masking import Masking
from vfio_intx.diagnose.prediction import predict
from vfio_intx.diagnose.rules import RULES, codes
from vfio_intx.diagnose.subject import VmFacts
from vfio_intx.errors import MissingError, UsageError, VfioIntxError
from vfio_intx.host import quirks
from vfio_intx.host.log import flags_mismatches, nobody_cared, parse_log
from vfio_intx.host.replay import from_bytes, read_snapshot, to_bytes
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf

TREE = Path(__file__).parents[2]
NIC = Bdf.parse("0000:00:10.0")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_a_real_case_has_exactly_its_findings(case: Case, tmp_path: Path) -> None:
    assert codes(look(case, tmp_path).findings) == case.expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_a_case_replayed_from_its_snapshot_is_the_same_case(case: Case, tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    case.build(tree)
    there = take_snapshot(tree.root)
    here = from_bytes(to_bytes(there), "x")
    assert here == there
    assert codes(predict(here.function(Bdf.parse(case.bdf)), here, case.vm).findings) == case.expected


def test_every_rule_of_the_first_twenty_is_seen_in_some_case() -> None:
    seen = {code for case in CASES for code in case.expected}
    assert {f"INTX{number:03}" for number in range(1, 21)} <= seen


def test_the_conflict_names_the_neighbour_and_the_exact_command(tmp_path: Path) -> None:
    (finding,) = [f for f in look(CASES[0], tmp_path).findings if f.code == "INTX001"]
    assert "ehci_hcd:usb3" in finding.summary
    assert finding.remedy == "echo 0000:00:1a.0 > /sys/bus/pci/drivers/ehci-pci/unbind"


def test_two_vfio_cards_on_one_line_are_not_each_others_host_driver(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.number == "5")
    (finding,) = [f for f in look(case, tmp_path).findings if f.code == "INTX019"]
    assert "0000:09:00.0" in finding.summary


def test_the_way_out_never_unbinds_what_a_running_vm_has(tmp_path: Path) -> None:
    """That write would block in the kernel until the VM ends; our own unbind refuses, and names the process."""
    case = next(case for case in CASES if case.number == "5")
    remedies = [finding.remedy for finding in look(case, tmp_path).findings if finding.code in ("INTX001", "INTX019")]
    assert remedies == ["vfio-intx unbind 0000:09:00.0"] * 2


def test_a_rival_that_we_have_bound_is_restored(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.number == "24")
    (tmp_path / "var/lib/vfio-intx").mkdir(parents=True)
    (tmp_path / "var/lib/vfio-intx/0000:09:00.0.record").write_text("")
    (finding,) = look(case, tmp_path).findings
    assert finding.remedy == "vfio-intx restore 0000:09:00.0"


COMMANDS = ("echo", "modprobe", "vfio-intx", "sudo", "dmesg")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_a_remedy_that_begins_as_a_command_can_be_typed_as_it_stands(case: Case, tmp_path: Path) -> None:
    for finding in look(case, tmp_path).findings:
        if finding.remedy and finding.remedy.startswith(COMMANDS):
            parsed = subprocess.run(["/bin/sh", "-n", "-c", finding.remedy], capture_output=True, text=True)
            assert parsed.stderr == ""


def test_a_card_in_d3cold_is_told_how_to_be_woken(tmp_path: Path) -> None:
    """Root reads no more of it than others: sudo is no remedy."""
    case = next(case for case in CASES if case.number == "18")
    (finding,) = look(case, tmp_path).findings
    control = "/sys/bus/pci/devices/0000:08:00.0/power/control"
    assert finding.remedy == f"echo on > {control} && vfio-intx check 0000:08:00.0"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_rule_explains_itself_and_names_its_source(rule: object, capsys: pytest.CaptureFixture[str]) -> None:
    code = getattr(rule, "code")  # noqa: B009
    assert explain.run(argparse.Namespace(code=code.lower(), json=False)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{code}: ")
    assert len(printed.splitlines()) >= 7
    assert "\nSource: " in printed


def test_a_card_whose_intx_is_hidden_has_no_scheme(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.number == "26")
    assert look(case, tmp_path).scheme is None


def test_an_unknown_code_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "INTX999"]) == 2
    assert "vfio-intx explain lists them" in capsys.readouterr().err


def checked(tree: FakeTree, *words: str) -> int:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    return check.run(parser.parse_args(list(words)), tree.root)


def test_the_status_of_check_is_that_of_a_monitoring_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = nic_host(tmp_path / "good", net=("eth0",)).tree
    assert checked(good, "00:10.0") == 0
    assert checked(good, "00:10.0", "--irqchip", "split") == 1
    assert checked(good, "00:10.0", "--machine", "pc-q35-4.0") == 1
    assert checked(good, "00:10.0", "--machine", "pc-q35-4.0", "--irqchip", "on") == 0
    assert checked(nic_host(tmp_path / "group", group=None).tree, "00:10.0") == 2
    assert checked(nic_host(tmp_path / "asleep", power="D3cold").tree, "00:10.0") == 3
    statuses = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert statuses == ["OK", "WARNING", "WARNING", "OK", "CRITICAL", "UNKNOWN"]


@pytest.mark.parametrize("words", [["check"], ["check", "nonsense"], ["check", "00:10.0", "--no-such-option"]])
def test_a_usage_error_of_check_is_unknown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 3
    assert capsys.readouterr().err


def test_an_absent_function_makes_check_unknown(tmp_path: Path) -> None:
    with pytest.raises(VfioIntxError) as caught:
        checked(nic_host(tmp_path).tree, "ff:1f.7")
    assert caught.value.exit_status == 3


def test_check_reads_a_log_of_qemu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = nic_host(tmp_path / "host", net=("eth0",)).tree
    log = tmp_path / "qemu.log"
    log.write_bytes(b"\x1b[31mvfio: Error: Failed to setup INTx fd: Device or resource busy\n")
    assert checked(tree, "00:10.0", "--json", "--qemu-log", str(log)) == 2
    answer = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in answer["findings"]] == ["INTX003"]
    assert "\x1b" not in json.dumps(answer)
    with pytest.raises(MissingError):
        checked(tree, "00:10.0", "--qemu-log", str(tmp_path / "absent"))


def test_a_line_that_msi_hides_is_known_from_a_neighbour_on_the_same_wire(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, irq=40, msi=True, msi_enabled=True, msi_vectors=(40,)).tree
    tree.add(FakeFunction("0000:00:10.1", pin=1, driver="snd", group=4, irq=20))
    tree.add(FakeFunction("0000:00:10.2", pin=2, driver="x", group=4, irq=23))
    tree.interrupts({20: (1, "IO-APIC  20-fasteoi", "snd"), 23: (1, "IO-APIC  23-fasteoi", "x")})
    snapshot = take_snapshot(tree.root)
    assert predict(snapshot.function(NIC), snapshot).subject.irq == 20


def test_cards_behind_two_root_ports_are_not_taken_to_share_a_line(tmp_path: Path) -> None:
    """By the swizzle alone both would arrive at pin A of slot 1c; an Intel hub turns the second port's A into B."""
    tree = nic_host(tmp_path).tree
    for number, irq in ((0, 16), (1, 40)):
        port = f"0000:00:1c.{number}"
        tree.add(FakeFunction(port, class_code=0x060400, header_type=1, pin=number + 1, irq=0, driver="pcieport"))
        msi = {"msi": True, "msi_enabled": True, "msi_vectors": (40,)} if number else {}
        behind = {"parent": port, "driver": "x", "group": 9 + number, "irq": irq, **msi}
        tree.add(FakeFunction(f"0000:0{2 + number}:00.0", **behind))  # type: ignore[arg-type]
    snapshot = take_snapshot(tree.root)
    subject = predict(snapshot.function(Bdf.parse("03:00.0")), snapshot).subject
    assert (subject.irq, subject.neighbours) == (None, ())


def test_a_function_that_nobody_enabled_has_no_line_yet(tmp_path: Path) -> None:
    """Its irq is what the firmware wrote for another interrupt controller; IRQ 11 belongs to somebody else."""
    tree = nic_host(tmp_path, vendor=0x1B7C, device=0x0004, irq=11, enable=0, driver="").tree
    tree.interrupts({11: (7, "IO-APIC  11-fasteoi", "acpi")})
    tree.write("dev/kmsg", "")
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert (prediction.subject.irq, prediction.subject.handlers) == (None, ())
    assert (prediction.severity, codes(prediction.findings)) == (Severity.UNKNOWN, ("INTX023",))
    enable = f"/sys/bus/pci/devices/{NIC}/enable"
    assert prediction.findings[0].remedy == f"echo 1 > {enable} && echo 0 > {enable} && vfio-intx check {NIC}"
    assert "firmware" in unknown_facts(prediction)["irq"]


def test_a_line_that_msi_hides_is_unknown_where_it_matters(tmp_path: Path) -> None:
    card = {"vendor": 0x15B3, "device": 0x1003, "msi": True, "msi_enabled": True, "msi_vectors": (40,), "irq": 40}
    tree = nic_host(tmp_path, **card).tree
    tree.write("dev/kmsg", "")
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert (prediction.severity, prediction.ready) == (Severity.UNKNOWN, False)
    assert prediction.findings[0].remedy == f"vfio-intx bind {NIC} && vfio-intx check {NIC}"


def test_a_card_that_shares_is_not_held_up_by_an_unknown_line(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, irq=11, enable=0, driver="").tree
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert prediction.ready
    assert "not known yet" in prediction.outlook[0]
    assert "alone" not in prediction.outlook[0]


def test_a_function_that_was_enabled_once_keeps_its_line(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, vendor=0x1B7C, device=0x0004, irq=11, enable=0, driver="vfio-pci").tree
    tree.write(f"sys/bus/pci/devices/{NIC}/irq", "17\n")
    tree.interrupts({17: (7, "IO-APIC  17-fasteoi", "ehci_hcd:usb1")})
    tree.write("dev/kmsg", "")
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert (prediction.subject.irq, "INTX001" in codes(prediction.findings)) == (17, True)


def test_a_disguised_msi_vector_255_is_no_line(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, irq=255).tree
    tree.interrupts({255: (7, "PCI-MSI 1-edge", "nvme0q3")})
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert prediction.subject.handlers == ()
    assert "INTX014" in codes(prediction.findings)


def test_an_unprivileged_reader_is_told_what_is_unknown_and_not_no(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, vendor=0x15B3, device=0x1013).tree
    snapshot = take_snapshot(tree.root)
    assert not snapshot.log.is_known
    prediction = predict(snapshot.function(NIC), snapshot)
    assert (prediction.severity, prediction.ready) == (Severity.UNKNOWN, False)


REAL_LINES = (
    "genirq: Flags mismatch irq 16. 00000000 (vfio-intx(0000:08:00.0)) vs. 00000080 (ehci_hcd:usb3)",
    "genirq: Flags mismatch irq 16. 00000000 (vfio-intx(0000:03:00.0)) vs. 00000000 (vfio-intx(0000:04:00.0))",
    "genirq: Flags mismatch irq 16. 00200000 (vfio-intx(0000:01:00.4)) vs. 00200080 (hpilo)",
)


def test_the_real_mismatch_lines_are_read_as_hexadecimal_flags() -> None:
    found = flags_mismatches(parse_log("\n".join(REAL_LINES)))
    assert [(seen.asked_shared, seen.holder_shared) for seen in found] == [(False, True), (False, False), (False, True)]
    assert [seen.holder for seen in found] == ["ehci_hcd:usb3", "vfio-intx(0000:04:00.0)", "hpilo"]


def test_a_log_in_the_form_of_kmsg_and_in_that_of_dmesg_is_the_same_log() -> None:
    kmsg = "3,900,12500000,-;irq 16: nobody cared\n SUBSYSTEM=pci\n3,901,12500001,-;[<00aa>] usb_hcd_irq\n"
    dmesg = "[   12.500000] irq 16: nobody cared\n[   12.500001] [<00aa>] usb_hcd_irq\n"
    assert parse_log(kmsg) == parse_log(dmesg)
    (seen,) = nobody_cared(parse_log(kmsg))
    assert (seen.irq, seen.at, seen.handlers) == (16, 12.5, ("usb_hcd_irq",))


@given(st.text(max_size=400))
def test_no_log_makes_the_parser_fail(text: str) -> None:
    for hay in (text, f"irq 16: nobody cared {text}\n[<{text}", f"1,2,3,-;genirq: Flags mismatch irq {text}"):
        lines = parse_log(hay)
        assert all(line.text.isprintable() for line in lines)
        flags_mismatches(lines)
        nobody_cared(lines)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[" * 100000, b'{"schema": "vfio-intx/snapshot/2"}', b"\xff\xfe"])
def test_a_file_that_holds_no_snapshot_is_a_usage_error(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(UsageError, match="holds no snapshot"):
        read_snapshot(tmp_path / "file")


def test_a_snapshot_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    raw = to_bytes(take_snapshot(nic_host(tmp_path).tree.root)).replace(b"snapshot/1", b"snapshot/2")
    with pytest.raises(UsageError, match="snapshot/2"):
        from_bytes(raw, "x")


KERNEL = {
    "Makefile": "VERSION = 9\nPATCHLEVEL = 1\nSUBLEVEL = 2\nEXTRAVERSION =\n",
    "include/linux/pci_ids.h": """
#define PCI_VENDOR_ID_INTEL 0x8086
#define PCI_VENDOR_ID_MELLANOX 0x15b3
#define PCI_DEVICE_ID_MELLANOX_ONE 0x0001
#define PCI_DEVICE_ID_MELLANOX_CONNECTX4 0x1013
""",
    "drivers/pci/quirks.c": """
DECLARE_PCI_FIXUP_FINAL(0x1814, 0x0601, /* a card, with a comma */
                        quirk_broken_intx_masking);
/* DECLARE_PCI_FIXUP_FINAL(0xdead, 0x0001, quirk_broken_intx_masking); */
static u16 mellanox_broken_intx_devs[] = {
        PCI_DEVICE_ID_MELLANOX_ONE,
};
static void mellanox_check_broken_intx_masking(struct pci_dev *pdev)
{
        if (pdev->device != PCI_DEVICE_ID_MELLANOX_CONNECTX4) {
                return;
        }
}
""",
    "drivers/vfio/pci/vfio_pci_core.c": """
static bool vfio_pci_nointx(struct pci_dev *pdev)
{
        switch (pdev->vendor) {
        case PCI_VENDOR_ID_INTEL:
                switch (pdev->device) {
                case 0x1572:
                case 0x1580 ... 0x1582:
                        return true;
                }
        }
}
""",
}


def test_the_list_of_broken_cards_is_read_from_the_kernels_source(tmp_path: Path) -> None:
    for name, text in KERNEL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = [sys.executable, str(TREE / "tools/gen-quirks"), "--source", str(tmp_path)]
    made: dict[str, object] = {}
    exec(subprocess.run(command, check=True, capture_output=True, text=True).stdout, made)
    assert made["SOURCE"] == "Linux 9.1.2"
    assert made["BROKEN"] == {(0x1814, 0x0601), (0x15B3, 0x0001)}
    assert made["BROKEN_BY_FIRMWARE"] == {(0x15B3, 0x1013)}
    assert made["HIDDEN"] == {(0x8086, 0x1572), (0x8086, 0x1580), (0x8086, 0x1581), (0x8086, 0x1582)}


def test_the_list_has_the_cards_that_are_known_from_the_field() -> None:
    assert re.fullmatch(r"Linux \d+\.\d+\.\d+.*", quirks.SOURCE)
    assert {(0x1102, 0x000B), (0x15B3, 0x1003), (0x15B3, 0x1007), (0x10EC, 0x8169)} <= quirks.BROKEN
    assert (0x8086, 0x1563) in quirks.HIDDEN


def test_the_write_test_tells_a_card_whose_bit_does_not_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A file takes every write, as a card does whose DisINTx works.
    tree = nic_host(tmp_path, driver="").tree
    config = tree.directory("0000:00:10.0") / "config"
    before = config.read_bytes()
    assert checked(tree, "00:10.0", "--write-test", "--json") == 0
    assert config.read_bytes() == before
    assert json.loads(capsys.readouterr().out)["masking"]["verdict"] == "disintx"
    snapshot = take_snapshot(tree.root)
    broken = predict(snapshot.function(NIC), snapshot, VmFacts(disintx_changes=False))
    assert broken.subject.verdict.masking is Masking.EXCLUSIVE


def test_the_write_test_leaves_a_function_with_a_driver_and_a_dead_one_alone(tmp_path: Path) -> None:
    with pytest.raises(VfioIntxError, match="has the driver e1000"):
        checked(nic_host(tmp_path / "driven").tree, "00:10.0", "--write-test")
    dead = nic_host(tmp_path / "dead", driver="", dead=True).tree
    with pytest.raises(VfioIntxError, match="all ones; nothing was written"):
        checked(dead, "00:10.0", "--write-test")


def test_the_write_test_needs_the_card_itself(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a snapshot"):
        checked(nic_host(tmp_path).tree, "00:10.0", "--write-test", "--from", "x")


@pytest.mark.parametrize(
    ("by_parameter", "remedy"), [(True, "modprobe vfio-pci nointxmask=0"), (False, "another slot")]
)
def test_a_neighbour_that_the_host_lives_on_is_never_told_to_go(
    tmp_path: Path, by_parameter: bool, remedy: str
) -> None:
    broken = {} if by_parameter else {"vendor": 0x15B3, "device": 0x1003}
    tree = nic_host(tmp_path, driver="vfio-pci", **broken).tree
    if by_parameter:
        tree.module("vfio_pci", nointxmask="Y")
    tree.add(FakeFunction("0000:00:17.0", class_code=0x010601, driver="ahci", group=9, irq=21))
    tree.write("sys/devices/pci0000:00/0000:00:17.0/ata1/block/sda/dev", "8:0\n")
    tree.link("sys/class/block/sda", "sys/devices/pci0000:00/0000:00:17.0/ata1/block/sda")
    tree.write("proc/self/mountinfo", "29 1 8:0 / / rw - ext4 /dev/sda rw\n")
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", "ahci[0000:00:17.0]")})
    snapshot = take_snapshot(tree.root)
    (finding,) = [f for f in predict(snapshot.function(NIC), snapshot).findings if f.code == "INTX001"]
    assert "unbind" not in (finding.remedy or "")
    assert remedy in (finding.remedy or "")
    assert any("0000:00:17.0 cannot move: it holds / (sda)" in item for item in finding.evidence)


@pytest.mark.parametrize(
    ("fields", "handlers", "others"),
    [
        ({"net": ("enp0s16",)}, "eth0", ()),
        ({"driver": "vfio-pci"}, "eth0", ("eth0",)),
        ({"driver": "serial"}, "ttyS4, ehci_hcd:usb1", ("ehci_hcd:usb1",)),
        ({"driver": "ahci"}, "ahci[0000:00:10.0], ahci[0000:00:11.0]", ("ahci[0000:00:11.0]",)),
        ({"driver": "ehci-pci", "directories": ("usb1",)}, "ehci_hcd:usb1, ehci_hcd:usb2", ("ehci_hcd:usb2",)),
        ({"driver": "snd_hda_intel"}, "snd_hda_intel:card0, eth0", ("eth0",)),
    ],
)
def test_a_card_s_own_handlers_are_not_counted_as_others(
    tmp_path: Path, fields: dict[str, object], handlers: str, others: tuple[str, ...]
) -> None:
    tree = nic_host(tmp_path, **fields).tree
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", handlers)})
    snapshot = take_snapshot(tree.root)
    assert predict(snapshot.function(NIC), snapshot).subject.handlers == others


@pytest.mark.parametrize(
    ("driver", "handlers", "other"),
    [
        ("snd_ens1371", "snd_ens1371, snd_ens1371", "snd_ens1371"),
        ("snd_hda_intel", "snd_hda_intel:card0, snd_hda_intel:card1", "snd_hda_intel:card1"),
        # One action serves all ports of a line (serial_link_irq_chain in drivers/tty/serial/8250/8250_core.c).
        ("serial", "ttyS4", "ttyS4"),
    ],
)
def test_the_handler_of_a_twin_on_the_same_line_is_not_taken_for_the_card_s_own(
    tmp_path: Path, driver: str, handlers: str, other: str
) -> None:
    tree = nic_host(tmp_path, driver=driver).tree
    tree.add(FakeFunction("0000:00:11.0", driver=driver, group=5, irq=21))
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", handlers)})
    tree.module("vfio_pci", nointxmask="Y")
    snapshot = take_snapshot(tree.root)
    prediction = predict(snapshot.function(NIC), snapshot)
    assert prediction.subject.handlers == (other,)
    (finding,) = [f for f in prediction.findings if f.code == "INTX001"]
    assert finding.remedy == f"echo 0000:00:11.0 > /sys/bus/pci/drivers/{driver}/unbind"


def test_nointxmask_comes_before_the_list_of_hidden_cards(tmp_path: Path) -> None:
    """vfio_pci_core_enable() asks vfio_pci_nointx() only without it: the pin is then shown, and the line exclusive."""
    tree = nic_host(tmp_path, device=0x1572).tree
    tree.module("vfio_pci", nointxmask="Y")
    snapshot = take_snapshot(tree.root)
    assert predict(snapshot.function(NIC), snapshot).subject.verdict.masking is Masking.EXCLUSIVE


def test_a_group_that_cannot_be_read_is_unknown_and_not_absent(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, group=None).tree
    (tree.directory(str(NIC)) / "iommu_group").mkdir()  # no link: EINVAL
    snapshot = take_snapshot(tree.root)
    (finding,) = predict(snapshot.function(NIC), snapshot).findings
    assert (finding.code, finding.severity) == ("INTX024", Severity.UNKNOWN)
    assert "could not be read" in finding.summary
    assert finding.remedy is None


def test_a_member_whose_driver_cannot_be_read_leaves_the_group_unknown(tmp_path: Path) -> None:
    tree = nic_host(tmp_path).tree
    tree.add(FakeFunction("0000:00:10.1", driver="snd", group=4, irq=22))
    (tree.directory("0000:00:10.1") / "uevent").unlink()
    snapshot = take_snapshot(tree.root)
    (finding,) = predict(snapshot.function(NIC), snapshot).findings
    assert (finding.code, finding.severity) == ("INTX025", Severity.UNKNOWN)
    assert "0000:00:10.1/uevent: No such file" in finding.evidence[0]


def test_no_name_splits_the_first_line_of_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A monitoring system takes what follows the first bar for performance data."""
    tree = nic_host(tmp_path, driver="vfio-pci").tree
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", "a|b")})
    checked(tree, "00:10.0")
    first = capsys.readouterr().out.splitlines()[0]
    assert first.count("|") == 1
    assert "a/b" in first


def test_an_owners_file_that_cannot_be_read_is_told_and_not_taken_for_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To a mere user libvirt's and Proxmox's files are closed; here root meets what not even root can read."""
    tree = nic_host(tmp_path, net=("eth0",)).tree
    for name in ("etc/libvirt/qemu/win10.xml", "etc/modprobe.d/a.conf"):
        (tree.path / name).mkdir(parents=True)
    (tree.path / "etc/pve").mkdir()
    (tree.path / "etc/pve/qemu-server").symlink_to("qemu-server")
    checked(tree, "00:10.0", "--json")
    unknown = json.loads(capsys.readouterr().out)["unknown"]["claims"]
    assert "/etc/libvirt/qemu/win10.xml: Is a directory" in unknown
    assert "/etc/modprobe.d/a.conf: Is a directory" in unknown
    assert "/etc/pve/qemu-server: Too many levels of symbolic links" in unknown
    assert "driverctl" not in unknown
    checked(tree, "00:10.0")
    assert f"  not seen: who else claims it: {unknown}\n" in capsys.readouterr().out
    there = take_snapshot(tree.root)
    assert from_bytes(to_bytes(there), "x").unread == there.unread


MISMATCH = f"genirq: Flags mismatch irq 21. 00000000 (vfio-intx({NIC})) vs. 00000080 (ehci_hcd:usb1)"


def masked(tree: FakeTree, changes: bool | None = None) -> Masking:
    snapshot = take_snapshot(tree.root)
    return predict(snapshot.function(NIC), snapshot, VmFacts(disintx_changes=changes)).subject.verdict.masking


def test_what_the_log_tells_of_a_time_with_nointxmask_is_not_held_against_a_card(tmp_path: Path) -> None:
    """The remedy for that (nointxmask=0) would otherwise never be seen to have helped."""
    tree = nic_host(tmp_path, driver="vfio-pci").tree
    tree.write("dev/kmsg", f"4,1,1000000,-;{MISMATCH}\n")
    assert masked(tree) is Masking.EXCLUSIVE
    # The kernel's own test is the same as ours.
    assert masked(tree, changes=True) is Masking.DISINTX
    # It has been granted a line that others are on.
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", f"vfio-intx({NIC}), ehci_hcd:usb1")})
    assert masked(tree) is Masking.DISINTX


def test_a_line_that_vfio_has_alone_proves_nothing(tmp_path: Path) -> None:
    tree = nic_host(tmp_path, driver="vfio-pci").tree
    tree.write("dev/kmsg", f"4,1,1000000,-;{MISMATCH}\n")
    tree.interrupts({21: (7, "IO-APIC  21-fasteoi", f"vfio-intx({NIC})")})
    assert masked(tree) is Masking.EXCLUSIVE


@pytest.mark.parametrize(
    ("text", "bdf", "seen"),
    [
        ("vfio-pci {}: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e address=0x0 flags=0x0000]", str(NIC), True),
        ("AMD-Vi: Event logged [IO_PAGE_FAULT device={} domain=0x000e address=0x0 flags=0x0000]", str(NIC), True),
        ("AMD-Vi: Event logged [IO_PAGE_FAULT device=00:10.0 domain=0x000e address=0x0 flags=0x0000]", str(NIC), True),
        ("DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x0 [fault reason 0x05]", str(NIC), True),
        # The words of a segment's unit name no segment; what they mean there cannot be told.
        ("DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x0", "0001:00:10.0", False),
        ("vfio-pci 0001:00:10.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e]", str(NIC), False),
    ],
)
def test_the_words_of_an_iommu_that_refuses_dma(tmp_path: Path, text: str, bdf: str, seen: bool) -> None:
    tree = nic_host(tmp_path, bdf=bdf).tree
    tree.write("dev/kmsg", f"4,1,1000000,-;{text.format(bdf)}\n")
    snapshot = take_snapshot(tree.root)
    found = codes(predict(snapshot.function(Bdf.parse(bdf)), snapshot).findings)
    assert ("INTX020" in found) is seen


def test_what_is_no_command_does_not_look_like_one(tmp_path: Path) -> None:
    """ "modprobe kvm_amd, or kvm_intel" typed as it stands loads nothing."""
    tree = nic_host(tmp_path).tree
    (tree.path / "dev/kvm").unlink()
    snapshot = take_snapshot(tree.root)
    (finding,) = [f for f in predict(snapshot.function(NIC), snapshot).findings if f.code == "INTX028"]
    assert not (finding.remedy or "").startswith(COMMANDS)
