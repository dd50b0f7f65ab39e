"""attach, detach and status by the command line, on a fake host and VM: what they report, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.attach_bench import ATTACH, BDF, ID, IRQ, Bench, attach_bench
from tests.fakes.qmp_server import PATIENCE
from tests.fakes.tree import FakeFunction


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    with attach_bench(tmp_path, monkeypatch, capsys) as found:
        yield found


def test_irqfd_is_proven_by_configuration_and_counters(bench: Bench) -> None:
    line = bench.json(*ATTACH)
    assert (line["schema"], line["scheme"], line["proven"]) == ("vfio-intx/attach/1", "irqfd", True)
    assert {item["kind"] for item in line["evidence"] if item["speaks_for"] == "irqfd"} == {"configuration", "counters"}
    assert (line["gsi"], line["guest"], line["host_irq"], line["qemu_interrupts"]) == (11, "listening", IRQ, 0)
    assert bench.sent("device_add") == [
        {"driver": "vfio-pci", "id": ID, "host": BDF, "bus": "pci.0", "x-no-kvm-intx": False}
    ]


def test_trap_is_proven_when_qemu_raises_each(bench: Bench) -> None:
    bench.raised_by_qemu = True
    line = bench.json(*ATTACH, "--scheme", "trap")
    assert (line["scheme"], line["proven"]) == ("trap", True)
    assert bench.sent("device_add")[0]["x-no-kvm-intx"] is True


def test_a_split_irqchip_is_reported_as_split(bench: Bench) -> None:
    bench.vm.ioapic = "ioapic"
    line = bench.json(*ATTACH)
    assert (line["scheme"], line["irqchip"]) == ("split", "split")
    assert any("kernel-irqchip=split" in note for note in line["notes"])


def test_a_silent_fallback_of_qemu_is_found(bench: Bench) -> None:
    bench.raised_by_qemu = True  # QEMU was told irqfd, could not, and only warned in its log
    line = bench.json(*ATTACH)
    assert (line["scheme"], line["proven"], line["configured"]) == (None, False, "irqfd")
    assert "contradicts itself" in line["why_not_proven"]


def test_without_an_interrupt_nothing_is_claimed(bench: Bench) -> None:
    bench.traffic = False
    line = bench.json("attach", BDF, "--timeout", "60", "--prove", "0.05")
    assert (line["scheme"], line["proven"]) == (None, False)
    assert "second kind of evidence is missing" in line["why_not_proven"]


@pytest.mark.parametrize(("guest", "uptake"), [("ignores", "seen"), ("programs", "programmed")])
def test_a_guest_without_a_driver_is_said_to_have_none(bench: Bench, guest: str, uptake: str) -> None:
    bench.vm.guest = guest
    for seconds in PATIENCE:
        bench.vm.devices.clear()
        bench.capture.readouterr()
        status = bench.run("attach", BDF, "--timeout", str(seconds), "--json")
        output = bench.capture.readouterr()
        line = json.loads(output.out) if status == 0 else {}
        if line.get("guest") == uptake:
            break
    assert (line["guest"], line["gsi"], line["proven"]) == (uptake, None, False)
    assert any("no driver in the guest listens" in note for note in line["notes"])


def test_a_shared_host_line_does_not_prove_irqfd(bench: Bench) -> None:
    bench.others = ("ehci_hcd:usb1",)
    line = bench.json(*ATTACH)
    assert not line["proven"]
    assert line["host_shared_with"] == ["ehci_hcd:usb1"]


def test_a_dry_run_adds_nothing_and_shows_the_command(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(*ATTACH, "--dry-run") == 0
    command = json.loads(capsys.readouterr().out.splitlines()[0])
    assert command["execute"] == "device_add"
    assert command["arguments"]["host"] == BDF
    assert bench.vm.devices == {}


def test_words_for_people(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(*ATTACH) == 0
    words = capsys.readouterr().out
    assert f"{BDF}: irqfd, proven" in words
    assert "GSI 11" in words


def test_attaching_twice_is_refused_by_name(bench: Bench) -> None:
    bench.json(*ATTACH)
    assert f"{BDF} is in this VM already, as {ID}" in bench.refused(*ATTACH)
    assert len(bench.sent("device_add")) == 1


def test_an_id_of_another_device_is_refused(bench: Bench) -> None:
    bench.vm.devices["nic"] = {"driver": "e1000", "guest": "ignores"}
    assert "another device with the id nic" in bench.refused(*ATTACH, "--id", "nic")


Change = Callable[[Bench], None]


def host(**fields: Any) -> Change:
    def change(bench: Bench) -> None:
        import shutil

        shutil.rmtree(bench.tree.path)
        bench.tree.__init__(bench.tree.path)  # type: ignore[misc]
        neighbour = fields.pop("neighbour", None)
        bench.tree.add(FakeFunction(BDF, **{"irq": IRQ, "driver": "vfio-pci", "group": 4, **fields}))
        if neighbour:
            bench.tree.add(FakeFunction("0000:00:10.1", driver=neighbour, group=4))

    return change


def vm(**fields: Any) -> Change:
    def change(bench: Bench) -> None:
        for name, value in fields.items():
            setattr(bench.vm, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "scheme", "words", "hint"),
    [
        (host(driver="e1000"), "irqfd", "is bound to e1000, not to vfio-pci", f"vfio-intx bind {BDF}"),
        (host(driver=""), "irqfd", "bound to no driver", f"vfio-intx bind {BDF}"),
        (host(pin=0), "irqfd", "has no INTx pin", "MSI"),
        (host(dead=True), "irqfd", "does not answer", "reset"),
        (host(group=None), "irqfd", "no IOMMU group", "intel_iommu=on"),
        (host(neighbour="ahci"), "irqfd", "not viable: the host still uses 0000:00:10.1 (ahci)", "bind 0000:00:10.1"),
        (vm(ioapic="ioapic", lapic="apic"), "irqfd", "irqfd is impossible", "--scheme trap"),
        (vm(properties=()), "irqfd", "has no vfio-pci device", "Debian"),
        (vm(properties=("host",)), "trap", "has no property x-no-kvm-intx", ""),
        (vm(hotplug_bus=False), "irqfd", "no PCI bus with room", "pcie-root-port"),
        (vm(faults={"device_add": "vfio: group 4 is not viable"}), "irqfd", "group 4 is not viable", "scan"),
        (vm(faults={"device_add": "\x1b[2Jboo"}), "irqfd", "\\x1b[2Jboo", ""),
    ],
)  # fmt: skip
def test_what_is_not_ready_is_refused_and_nothing_is_left(
    bench: Bench, change: Change, scheme: str, words: str, hint: str
) -> None:
    change(bench)
    said = bench.refused(*ATTACH, "--scheme", scheme)
    assert words in said
    assert hint in said
    assert bench.vm.devices == {}


def test_a_function_that_is_not_there(bench: Bench) -> None:
    said = bench.refused("attach", "0000:ff:1f.7")
    assert "there is no PCI function 0000:ff:1f.7" in said


def test_a_group_that_another_process_holds(bench: Bench) -> None:
    bench.tree.process(77, "qemu-system-x86", ["/dev/vfio/4"])
    said = bench.refused(*ATTACH)
    assert "IOMMU group 4" in said
    assert "process 77 (qemu-system-x86)" in said


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("query-pci", "hang"),
        ("query-pci", "some refusal"),
        ("human-monitor-command", "hang"),
        ("query-status", "hang"),
        ("query-status", "some refusal"),
    ],
)
def test_a_failure_after_device_add_takes_the_device_out_again(bench: Bench, command: str, fault: str) -> None:
    def fail_later(asked: str) -> None:
        bench.tick(asked)
        if asked == "device_add":
            bench.vm.faults[command] = fault

    bench.vm.on_command = fail_later
    seconds = "0.15" if fault == "hang" else "60"
    said = bench.refused("attach", BDF, "--timeout", seconds, "--prove", "0.2")
    if fault == "hang":  # a QEMU that does not answer cannot be tidied up, and that is said
        assert "did not answer within 0.15 s" in said
        assert f"may still be in the VM as {ID}" in said or bench.vm.devices == {}
    else:
        assert "some refusal" in said
        assert "the device was taken out of the VM again" in said
        assert bench.vm.devices == {}


def test_a_device_add_that_hangs_after_it_worked_is_said_to_be_unknown(bench: Bench) -> None:
    bench.vm.faults["device_add"] = "after-hang"
    for seconds in PATIENCE:
        bench.vm.devices.clear()
        said = bench.refused("attach", BDF, "--timeout", str(seconds))
        if bench.sent("device_add"):
            break
    assert f"did not answer within {seconds:g} s (deadline: device_add)" in said
    assert f"may still be in the VM as {ID}" in said
    assert "vfio-intx detach" in said


@pytest.mark.parametrize("command", ["device_add", "query-pci", "query-commands", "qom-list"])
@pytest.mark.parametrize("fault", ["die", "after-die"])
def test_a_qemu_that_dies_in_the_middle(bench: Bench, command: str, fault: str) -> None:
    bench.vm.faults[command] = fault
    said = bench.refused(*ATTACH)
    assert "closed the connection" in said
    assert "QEMU may have ended" in said


@pytest.mark.parametrize("command", ["device_add", "query-pci"])
def test_a_qemu_that_turns_to_garbage_in_the_middle(bench: Bench, command: str) -> None:
    bench.vm.faults[command] = "garbage"
    assert "does not talk QMP" in bench.refused(*ATTACH)


@pytest.mark.parametrize("scheme", ["split", "edge", "ack-eventfd"])
def test_a_scheme_that_qemu_cannot_be_told(bench: Bench, scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run("attach", BDF, "--scheme", scheme) == 2
    assert "irqfd or trap" in capsys.readouterr().err


def test_detach_takes_it_out_and_a_second_one_finds_nothing_to_do(bench: Bench) -> None:
    bench.json(*ATTACH)
    assert bench.json("detach", BDF) == {
        "schema": "vfio-intx/detach/1", "device": BDF, "id": ID, "was_attached": True, "released": True,
    }  # fmt: skip
    assert bench.vm.devices == {}
    assert bench.json("detach", BDF)["was_attached"] is False


def test_a_dry_detach_shows_the_command(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.json(*ATTACH)
    assert bench.run("detach", BDF, "--dry-run") == 0
    assert json.loads(capsys.readouterr().out) == {"execute": "device_del", "arguments": {"id": ID}}
    assert ID in bench.vm.devices


@pytest.mark.parametrize("running", [True, False])
def test_a_guest_that_does_not_let_go(bench: Bench, running: bool) -> None:
    bench.json(*ATTACH)
    bench.vm.unplugs, bench.vm.running = False, running
    for seconds in PATIENCE:
        said = bench.refused("detach", BDF, "--timeout", str(seconds))
        if "lets the device go" in said:
            break
    assert f"did not answer within {seconds:g} s (deadline: the guest lets the device go)" in said
    assert "the request stays pending" in said
    assert ("its vCPUs do not run: paused" in said) is not running
    assert ID in bench.vm.devices


def test_a_guest_that_says_no(bench: Bench) -> None:
    bench.json(*ATTACH)
    bench.vm.unplugs, bench.vm.refuses_unplug = False, True
    assert "the guest refuses to let the device go" in bench.refused("detach", BDF, "--timeout", "60")


def test_an_unplug_that_is_under_way_already_is_waited_for(bench: Bench) -> None:
    bench.json(*ATTACH)
    bench.vm.faults["device_del"] = f"Device {ID} is already in the process of unplug"

    def let_go(asked: str) -> None:
        bench.tick(asked)
        if asked == "qom-list" and bench.sent("device_del"):
            bench.vm.devices.clear()

    bench.vm.on_command = let_go
    assert bench.json("detach", BDF)["was_attached"] is True


def test_status_of_one_vm(bench: Bench) -> None:
    bench.json(*ATTACH)
    with bench.busy():
        (vm_found,) = bench.json("status", "--interval", "0.05")["vms"]
    (line,) = vm_found["lines"]
    assert (line["device"], line["scheme"], line["proven"]) == (BDF, "irqfd", True)
    assert line["window"]["host"] > 0
    assert line["window"]["qemu"] == 0


def test_status_of_a_vm_without_lines(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run("status") == 0
    assert "no lines" in capsys.readouterr().out


def test_the_name_of_a_neighbour_in_the_guest_moves_no_cursor(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.vm.devices["\x1b[2Jnic"] = {"driver": "e1000", "guest": "listens"}
    bench.raised_by_qemu = True
    assert bench.run(*ATTACH, "--scheme", "trap") == 0
    words = capsys.readouterr().out
    assert "shared with 00:04.0 \\x1b[2Jnic" in words
    assert "\x1b" not in words
