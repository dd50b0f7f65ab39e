"""``restore`` without a function: each that has a record comes back; one that cannot does not keep the others."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.fakes.kernel import Fail, FakeKernel, nic_host
from tests.fakes.tree import FakeFunction
from vfio_intx.cli import restore as cli_restore
from vfio_intx.cli import unbind as cli_unbind
from vfio_intx.errors import MissingError, RefusedError, WorldError
from vfio_intx.names import Bdf
from vfio_intx.wiring.drivers import bind

NICS = ("0000:00:10.0", "0000:00:11.0", "0000:00:12.0")


@pytest.fixture
def kernel(tmp_path: Path, state: Path) -> FakeKernel:
    """Three cards, all of them given to vfio-pci by us, and a fourth by somebody else."""
    kernel = nic_host(tmp_path / "host")
    for group, nic in enumerate(NICS[1:], start=5):
        kernel.tree.add(FakeFunction(nic, driver="e1000", group=group))
        kernel.matches[nic] = ["e1000"]
    for nic in NICS:
        bind(kernel, state, [Bdf.parse(nic)])
    kernel.tree.add(FakeFunction("0000:00:13.0", driver="vfio-pci", override="vfio-pci", group=9))
    kernel.log.clear()
    return kernel


def run(kernel: FakeKernel, state: Path, *, bdf: str | None = None, dry_run: bool = False) -> int:
    return cli_restore.run(argparse.Namespace(bdf=bdf, dry_run=dry_run, state_dir=str(state)), kernel)


def drivers(kernel: FakeKernel) -> list[str]:
    return [kernel.driver_of(nic) for nic in (*NICS, "0000:00:13.0")]


def test_all_that_we_gave_away_comes_back_and_nothing_else(
    kernel: FakeKernel, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(kernel, state) == 0
    assert drivers(kernel) == ["e1000", "e1000", "e1000", "vfio-pci"]
    assert capsys.readouterr().out.splitlines() == [
        f"{nic}: vfio-pci (driver_override vfio-pci) -> e1000" for nic in NICS
    ]
    assert list(state.glob("*.record")) == []
    assert run(kernel, state) == 0
    assert capsys.readouterr().out == f"nothing to restore: {state} has no record of a function\n"


def test_without_a_state_directory_there_is_nothing_to_do_and_none_is_made(
    kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VFIO_INTX_STATE", str(tmp_path / "nowhere"))
    for dry_run in (False, True):
        assert cli_restore.run(argparse.Namespace(bdf=None, dry_run=dry_run, state_dir=None), kernel) == 0
        assert "nothing to restore" in capsys.readouterr().out
    assert not (tmp_path / "nowhere").exists()


def test_a_state_directory_that_was_named_and_is_not_there_is_no_success(kernel: FakeKernel, tmp_path: Path) -> None:
    for bdf in (None, NICS[0]):
        for dry_run in (False, True):
            with pytest.raises(MissingError, match=r"there is no state directory .*/nowhere") as caught:
                run(kernel, tmp_path / "nowhere", bdf=bdf, dry_run=dry_run)
            assert caught.value.hint
    assert drivers(kernel) == ["vfio-pci"] * 4
    assert not (tmp_path / "nowhere").exists()


def test_a_dry_run_prints_what_the_run_then_writes(
    kernel: FakeKernel, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(kernel, state, dry_run=True) == 0
    printed = capsys.readouterr().out.splitlines()
    assert kernel.log == []
    run(kernel, state)
    assert printed == kernel.log


@pytest.mark.parametrize("dry_run", [False, True])
def test_one_that_is_in_use_or_gone_or_damaged_is_told_and_the_others_come_back(
    kernel: FakeKernel, state: Path, capsys: pytest.CaptureFixture[str], dry_run: bool
) -> None:
    kernel.tree.process(4711, "qemu-system-x86", ["/dev/vfio/5"])
    kernel.remove(NICS[2])
    (state / "0000:00:14.0.record").write_text("torn")
    assert run(kernel, state, dry_run=dry_run) == WorldError.exit_status
    assert drivers(kernel)[:2] == ["vfio-pci" if dry_run else "e1000", "vfio-pci"]
    told = capsys.readouterr().err
    for words in (
        f"vfio-intx restore {NICS[1]}: {NICS[1]} is in use by process 4711 (qemu-system-x86)",
        f"vfio-intx restore {NICS[2]}: the PCI function {NICS[2]} is gone",
        "vfio-intx restore 0000:00:14.0: ",
        "0000:00:14.0.record is not a whole record",
    ):
        assert words in told
    assert f"rm {state}/{NICS[2]}.record" in told
    assert len(list(state.glob("*.record"))) == (4 if dry_run else 3)


def test_behind_a_driver_that_hangs_nothing_more_is_tried(
    kernel: FakeKernel, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel.fails = {"vfio-pci": Fail.UNBIND_HANGS}
    assert run(kernel, state) == WorldError.exit_status
    assert len(kernel.log) == 2  # the first one's driver_override and unbind
    assert f"not tried: {NICS[1]}, {NICS[2]}" in capsys.readouterr().err


def test_a_mere_user_is_told_before_anything(kernel: FakeKernel, state: Path) -> None:
    kernel.is_root = False
    with pytest.raises(RefusedError, match="only root") as caught:
        run(kernel, state)
    assert caught.value.hint == "sudo vfio-intx restore"
    assert kernel.log == []


@pytest.mark.parametrize("bdf", [None, NICS[0]])
def test_a_dry_run_that_cannot_see_the_records_does_not_guess(
    kernel: FakeKernel, state: Path, monkeypatch: pytest.MonkeyPatch, bdf: str | None
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    for verb in (cli_restore, cli_unbind) if bdf else (cli_restore,):
        arguments = argparse.Namespace(bdf=bdf, dry_run=True, state_dir=str(state))
        with pytest.raises(RefusedError, match="state directory"):
            verb.run(arguments, kernel)


def test_a_stray_file_among_the_records_is_nobodys_record(
    kernel: FakeKernel, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (state / "notes.record").write_text("of mine")
    (state / "00:10.0.record").write_text("not how we write it")
    assert run(kernel, state) == 0
    assert drivers(kernel)[:3] == ["e1000"] * 3
    assert capsys.readouterr().err == ""
