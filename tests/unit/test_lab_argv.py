"""A lab's description is checked when it is made, and becomes the command line it says."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from vfio_intx.lab.argv import Places, card_arguments, vng_argv
from vfio_intx.lab.guests import GuestOptions, guest_argv, parse_interrupts
from vfio_intx.lab.spec import Card, FrameSocket, LabSpec, SerialSocket, UserNetwork, socket_path
from vfio_intx.lab.start import Setting, inner_script, outer_script
from vfio_intx.names import Bdf

RESULTS = Path("/tmp/results")
PLACES = Places(Path("/env/bin/vng"), Path("/cache/vmlinuz"), RESULTS)


def test_a_network_card_is_cut_off_from_the_machines_network() -> None:
    words = card_arguments(Card("e1000", 0x10, backend=UserNetwork(3), name="nic"), RESULTS)
    assert words == [
        "-netdev",
        "user,id=net-nic,net=10.0.3.0/24,restrict=on",
        "-device",
        "e1000,id=nic,addr=0x10,netdev=net-nic,romfile=",
    ]


def test_sockets_lie_in_the_results_folder() -> None:
    serial = card_arguments(Card("pci-serial", 0x11, backend=SerialSocket("line"), name="s"), RESULTS)
    assert "socket,id=line-s,path=/tmp/results/line.sock,server=on,wait=off" in serial
    frames = card_arguments(Card("e1000", 0x12, backend=FrameSocket("wire"), name="f"), RESULTS)
    assert "stream,id=net-f,server=on,addr.type=unix,addr.path=/tmp/results/wire.sock" in frames


def test_a_card_behind_a_bridge_names_its_bus_and_has_no_address_yet() -> None:
    card = Card("edu", 1, bus="bridge")
    assert card_arguments(card, RESULTS)[-1] == "edu,id=card-bridge-01,addr=0x1,bus=bridge,romfile="
    with pytest.raises(ValueError, match="only known in L1"):
        _ = card.bdf
    assert Card("e1000", 0x1E).bdf == Bdf(0, 0, 0x1E, 0)


@pytest.mark.parametrize("slot", [0, 0x0F, 0x1F, 0x20, -1])
def test_slots_of_virtme_ng_and_the_chipset_are_refused(slot: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        Card("e1000", slot)


@pytest.mark.parametrize("model", ["", "e1000,addr=3", "-device", "e 1000"])
def test_a_model_cannot_smuggle_options(model: str) -> None:
    with pytest.raises(ValueError, match="not the name of a QEMU device"):
        Card(model, 0x10)


@pytest.mark.parametrize("option", ["mac", "a=1,b=2"])
def test_options_are_one_pair_each(option: str) -> None:
    with pytest.raises(ValueError, match="name=value"):
        Card("e1000", 0x10, (option,))


def test_a_spec_wants_its_bridges_first_and_its_names_once() -> None:
    with pytest.raises(ValueError, match="does not come before"):
        LabSpec("6.12", (Card("edu", 1, bus="bridge"), Card("pci-bridge", 0x12, name="bridge")))
    with pytest.raises(ValueError, match="two cards"):
        LabSpec("6.12", (Card("edu", 0x10), Card("e1000", 0x10)))
    with pytest.raises(ValueError, match="one word"):
        LabSpec("6.12", kernel_arguments=("a b",))


def test_a_socket_path_that_the_kernel_would_cut_is_refused() -> None:
    assert socket_path(Path("/" + "x" * 95), "abcde") == Path("/" + "x" * 95 + "/abcde.sock")
    with pytest.raises(ValueError, match="longer than the 107 bytes"):
        socket_path(Path("/" + "x" * 96), "abcdef")
    with pytest.raises(ValueError, match="not a name"):
        socket_path(RESULTS, "../x")


def test_the_lab_is_booted_read_only_with_one_place_to_write() -> None:
    spec = LabSpec("6.12", (Card("e1000", 0x10),), kernel_arguments=("vfio_pci.nointxmask=1",))
    argv = vng_argv(spec, PLACES, RESULTS / "outer.sh")
    assert "--rw" not in argv
    assert [word for word in argv if "rwdir" in word] == ["--rwdir=/tmp/results"]
    assert argv[argv.index("--exec") + 1] == "/tmp/results/outer.sh"
    assert argv[argv.index("--cpus") + 1] == "1"
    assert argv[-2:] == ["--append", "vfio_pci.nointxmask=1"]
    (qemu,) = [word.removeprefix("--qemu-opts=") for word in argv if word.startswith("--qemu-opts=")]
    words = shlex.split(qemu)
    assert "q35,kernel-irqchip=off" in words
    assert "intel-iommu,intremap=on" in words
    assert "e1000,id=card-root-10,addr=0x10,romfile=" in words
    assert not any("fsdev" in word and "readonly=on" not in word for word in words if word.startswith("local"))


def test_a_lab_runs_in_the_qemu_that_was_built_for_it() -> None:
    built = replace(PLACES, qemu=Path("/cache/qemu/lab/bin/qemu-system-x86_64"))
    argv = vng_argv(LabSpec("6.12", qemu="lab"), built, RESULTS / "outer.sh")
    assert argv[argv.index("--qemu") + 1] == "/cache/qemu/lab/bin/qemu-system-x86_64"
    assert "--qemu" not in vng_argv(LabSpec("6.12"), PLACES, RESULTS / "outer.sh")


def test_a_shell_is_not_an_exec() -> None:
    argv = vng_argv(LabSpec("6.12"), PLACES, RESULTS / "outer.sh", interactive=True)
    assert "--exec" not in argv
    assert argv[argv.index("--shell") + 1] == "/tmp/results/outer.sh"


def test_hostile_words_reach_the_command_whole() -> None:
    nasty = "a b'c\"$(touch /x);`id`\\"
    setting = Setting(RESULTS, Path("/a b"), (Path("/a b"),), Path("/cache/modules"), {"X": nasty})
    script = inner_script(["echo", nasty], setting)
    assert shlex.join(["echo", nasty]) in script.splitlines()
    assert f"export X={shlex.quote(nasty)}" in script
    assert "cd '/a b'" in script
    assert "for folder in '/a b';" in outer_script(setting)


def test_the_status_is_written_last_and_whole() -> None:
    setting = Setting(RESULTS, Path("/p"), (), Path("/m"), {})
    assert inner_script(["true"], setting).splitlines()[-2:] == [
        "echo $? > /tmp/results/status.part",
        "mv /tmp/results/status.part /tmp/results/status",
    ]


def test_a_guest_has_two_monitors_and_the_irqchip_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_INTX_QEMU", "/opt/qemu")
    argv = guest_argv(
        GuestOptions(irqchip="split", kernel_arguments=("noapic",)), Path("/run/g"), Path("/k"), Path("/i")
    )
    assert argv[0] == "/opt/qemu"
    assert "pc,kernel-irqchip=split" in argv
    assert [argv[at + 1].split(",")[0] for at, word in enumerate(argv) if word == "-qmp"] == [
        "unix:/run/g/qmp",
        "unix:/run/g/witness",
    ]
    assert argv[argv.index("-append") + 1].endswith(" noapic")
    assert guest_argv(GuestOptions(qemu="mine"), Path("/g"), Path("/k"), Path("/i"))[0] == "mine"


def test_interrupts_of_a_guest_are_summed_over_its_cpus() -> None:
    text = "      CPU0  CPU1\n 10:    5    7   IO-APIC  10-fasteoi   eth0\nNMI:  0  0  Non-maskable\nERR: 3\n"
    table = parse_interrupts(text)
    assert list(table) == [10]
    assert (table[10].count, table[10].rest) == (12, "IO-APIC 10-fasteoi eth0")
