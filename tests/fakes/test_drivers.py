"""bind, unbind and restore on the fake driver core: what they do, and what they leave behind when something fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.kernel import Fail, FakeKernel, nic_host
from tests.fakes.tree import FakeFunction
from vfio_intx.deadline import Deadline
from vfio_intx.errors import (
    KernelError,
    MissingError,
    VerifyError,
    WorldError,
)
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf
from vfio_intx.wiring.apply import StuckWrite
from vfio_intx.wiring.drivers import bind, plan_bind, restore, unbind, with_group
from vfio_intx.wiring.journal import open_state
from vfio_intx.wiring.steps import Write

BDF = Bdf.parse("0000:00:10.0")
NIC = str(BDF)


def records(state: Path) -> list[str]:
    return sorted(path.name for path in state.glob("*.record*")) if state.exists() else []


def test_a_module_that_is_not_loaded_is_loaded_first(kernel: FakeKernel, state: Path) -> None:
    bind(kernel, state, [BDF])
    assert kernel.log[0] == "+ modprobe vfio-pci"
    assert kernel.state(NIC) == ("vfio-pci", "vfio-pci")


def test_a_module_that_there_is_not_leaves_everything(kernel: FakeKernel, state: Path) -> None:
    kernel.loadable.clear()
    with pytest.raises(MissingError, match="vfio-pci cannot be loaded"):
        bind(kernel, state, [BDF])
    assert kernel.state(NIC) == ("e1000", "")
    assert records(state) == []


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        ({"vfio-pci": Fail.PROBE}, VerifyError),
        ({"e1000": Fail.UNBIND_ERROR}, KernelError),
        ({"override": Fail.OVERRIDE_ERROR}, KernelError),
    ],
)
def test_a_failing_step_of_bind_leaves_the_machine_as_it_was(
    kernel: FakeKernel, state: Path, fails: dict[str, Fail], error: type[Exception]
) -> None:
    kernel.fails = fails
    with pytest.raises(error):
        bind(kernel, state, [BDF])
    assert kernel.state(NIC) == ("e1000", "")
    assert records(state) == []


def test_a_probe_that_succeeds_without_a_driver_is_a_failure_that_names_it(kernel: FakeKernel, state: Path) -> None:
    kernel.fails = {"vfio-pci": Fail.PROBE}
    with pytest.raises(VerifyError, match=r"bind it to vfio-pci.*has no driver \(driver_override vfio-pci\)"):
        bind(kernel, state, [BDF])


def test_a_first_driver_that_will_not_come_back_leaves_it_on_vfio(kernel: FakeKernel, state: Path) -> None:
    bind(kernel, state, [BDF])
    kernel.fails = {"e1000": Fail.PROBE}
    with pytest.raises(VerifyError, match="e1000"):
        restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("vfio-pci", "vfio-pci")
    kernel.fails = {}
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("e1000", "")


def test_an_undo_that_fails_is_told_and_remembered(kernel: FakeKernel, state: Path) -> None:
    kernel.fails = {"vfio-pci": Fail.PROBE, "e1000": Fail.PROBE}
    with pytest.raises(VerifyError) as caught:
        bind(kernel, state, [BDF])
    assert any("undoing it failed as well" in note for note in caught.value.__notes__)
    assert records(state) == [f"{NIC}.record"]
    kernel.fails = {}
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("e1000", "")
    assert records(state) == []


def test_an_unbind_that_hangs_is_left_alone_and_remembered(kernel: FakeKernel, state: Path) -> None:
    kernel.fails = {"e1000": Fail.UNBIND_HANGS}
    with pytest.raises(StuckWrite):
        bind(kernel, state, [BDF])
    assert kernel.log[-1].endswith("drivers/e1000/unbind")
    assert records(state) == [f"{NIC}.record"]
    kernel.fails = {}
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("e1000", "")


def test_a_hanging_first_step_is_remembered_though_nothing_can_be_seen_of_it(tmp_path: Path, state: Path) -> None:
    """With the override there before, the unbind comes first: until it goes through, all looks as it was."""
    kernel = nic_host(tmp_path / "host", override="vfio-pci")
    kernel.fails = {"e1000": Fail.UNBIND_HANGS}
    with pytest.raises(StuckWrite):
        bind(kernel, state, [BDF])
    assert kernel.state(NIC) == ("e1000", "vfio-pci")
    kernel.fails = {}
    kernel._set_driver(NIC, "")  # the driver lets go after all
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("e1000", "vfio-pci")


def test_a_record_that_cannot_be_written_leaves_none_of_its_group(kernel: FakeKernel, state: Path) -> None:
    kernel.tree.add(FakeFunction("0000:00:10.1", driver="snd_hda_intel", group=4, irq=22))
    (state / "0000:00:10.1.record.new").mkdir(parents=True)
    state.chmod(0o700)
    with pytest.raises(WorldError, match="cannot be written"):
        bind(kernel, state, [BDF, Bdf.parse("0000:00:10.1")])
    assert kernel.state(NIC) == ("e1000", "")
    assert records(state) == ["0000:00:10.1.record.new"]


def test_a_function_that_vanishes_in_the_middle_is_told(kernel: FakeKernel, state: Path) -> None:
    kernel.fails = {"e1000": Fail.GONE_AFTER_UNBIND}
    with pytest.raises(MissingError, match="gone"):
        bind(kernel, state, [BDF])


def test_restore_brings_back_the_driver_that_had_it_and_not_one_that_matches_too(
    kernel: FakeKernel, state: Path
) -> None:
    kernel.tree.driver("e1000_rival")
    kernel.matches[NIC] = ["e1000_rival", "e1000"]
    bind(kernel, state, [BDF])
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("e1000", "")


def test_restore_touches_no_other_card_at_that_address(kernel: FakeKernel, state: Path) -> None:
    bind(kernel, state, [BDF])
    kernel.tree.uevent(FakeFunction(NIC, device=0x10D3), driver="vfio-pci")
    before = list(kernel.log)
    with pytest.raises(MissingError, match="another card"):
        restore(kernel, state, BDF)
    assert kernel.log == before


def test_a_twin_with_the_same_ids_is_untouched(kernel: FakeKernel, state: Path) -> None:
    kernel.tree.add(FakeFunction("0000:00:11.0", driver="e1000", group=5, irq=22))
    bind(kernel, state, [BDF])
    assert kernel.state("0000:00:11.0") == ("e1000", "")
    assert not [line for line in kernel.log if "0000:00:11.0" in line]


def test_both_of_a_group_go_together_or_not_at_all(kernel: FakeKernel, state: Path) -> None:
    kernel.tree.add(FakeFunction("0000:00:10.1", driver="snd_hda_intel", group=4, irq=22))
    kernel.matches["0000:00:10.1"] = ["snd_hda_intel"]
    both = [BDF, Bdf.parse("0000:00:10.1")]
    kernel.fails = {"snd_hda_intel": Fail.UNBIND_ERROR}
    with pytest.raises(KernelError):
        bind(kernel, state, both)
    assert kernel.state(NIC) == ("e1000", "")
    assert records(state) == []
    kernel.fails = {}
    bind(kernel, state, both)
    assert kernel.state("0000:00:10.1") == ("vfio-pci", "vfio-pci")


def test_a_bridge_in_the_group_does_not_hinder(kernel: FakeKernel, state: Path) -> None:
    kernel.tree.add(FakeFunction("0000:00:1c.0", driver="pcieport", group=4, header_type=1, class_code=0x060400))
    bind(kernel, state, [BDF])
    assert kernel.state(NIC) == ("vfio-pci", "vfio-pci")


def test_a_function_that_somebody_else_gave_to_vfio_stays_theirs(tmp_path: Path, state: Path) -> None:
    kernel = nic_host(tmp_path / "host", driver="vfio-pci")
    assert bind(kernel, state, [BDF])[0].writes == 0
    assert records(state) == []
    with pytest.raises(MissingError, match="not by us"):
        restore(kernel, state, BDF)
    assert kernel.log == []


def test_after_a_stranger_has_moved_it_the_strangers_driver_is_the_first(kernel: FakeKernel, state: Path) -> None:
    bind(kernel, state, [BDF])
    kernel.tree.driver("e1000_rival")
    kernel._set_driver(NIC, "e1000_rival")
    kernel.tree.write(f"sys/bus/pci/devices/{NIC}/driver_override", "(null)\n")
    bind(kernel, state, [BDF])
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("e1000_rival", "")


def test_what_a_restore_that_died_left_is_not_taken_for_a_strangers_override(kernel: FakeKernel, state: Path) -> None:
    bind(kernel, state, [BDF])
    with open_state(state) as opened:
        record = opened.read(BDF)
        assert record is not None
        opened.write(record._replace(goal=record.first, settled=False))
    kernel.write(Write(f"/sys/bus/pci/devices/{NIC}/driver_override", "e1000"), Deadline.after("test", 1))
    kernel._set_driver(NIC, "")
    unbind(kernel, state, BDF)
    assert kernel.state(NIC) == ("", "")
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("e1000", "")


def test_a_first_override_comes_back(tmp_path: Path, state: Path) -> None:
    kernel = nic_host(tmp_path / "host", override="e1000")
    bind(kernel, state, [BDF])
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("e1000", "e1000")


def test_a_function_without_a_driver_gets_none_back(tmp_path: Path, state: Path) -> None:
    kernel = nic_host(tmp_path / "host", driver="")
    kernel.matches = {}
    bind(kernel, state, [BDF])
    assert kernel.state(NIC) == ("vfio-pci", "vfio-pci")
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == ("", "")


class Interrupted(FakeKernel):
    """A kernel whose user presses Ctrl-C when a certain write has been made."""

    after = ""

    def write(self, write: Write, deadline: Deadline) -> None:
        super().write(write, deadline)
        if write.path.endswith(self.after):
            self.after = "never again"
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", ["driver_override", "e1000/unbind", "drivers_probe"])
def test_ctrl_c_at_any_write_leaves_the_machine_as_it_was(kernel: FakeKernel, state: Path, after: str) -> None:
    interrupted = Interrupted(kernel.tree, kernel.matches)
    interrupted.after = after
    with pytest.raises(KeyboardInterrupt):
        bind(interrupted, state, [BDF])
    assert kernel.state(NIC) == ("e1000", "")
    assert records(state) == []


def test_a_member_without_a_pin_goes_along_for_the_sake_of_its_group(kernel: FakeKernel, state: Path) -> None:
    """--force, which would waive that too, would also waive what the host lives on."""
    kernel.tree.add(FakeFunction("0000:00:10.1", driver="lpc_ich", class_code=0x060100, group=4, pin=0, irq=0))
    kernel.matches["0000:00:10.1"] = ["lpc_ich"]
    going = with_group(take_snapshot(kernel.root), BDF)
    bind(kernel, state, going)
    assert [kernel.state(str(bdf))[0] for bdf in going] == ["vfio-pci", "vfio-pci"]


def test_a_driver_with_blanks_in_its_name_gives_the_card_and_gets_it_back(tmp_path: Path, state: Path) -> None:
    """drivers/media/pci/cx88/cx88-mpeg.c calls itself so: an old TV card is just what INTx is forwarded for."""
    name = "cx88-mpeg driver manager"
    kernel = nic_host(tmp_path / "host", driver=name, class_code=0x048000)
    kernel.matches = {NIC: [name]}
    script = plan_bind(take_snapshot(kernel.root), [BDF], {}).script()
    assert f"+ echo \"{NIC}\" > '/sys/bus/pci/drivers/{name}/unbind'" in script
    bind(kernel, state, [BDF])
    restore(kernel, state, BDF)
    assert kernel.state(NIC) == (name, "")
