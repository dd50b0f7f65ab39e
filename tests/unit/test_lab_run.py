"""``lab run``: where its result shall go is looked at before minutes are spent, and what was kept is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_intx.cli.main import main
from vfio_intx.deadline import Deadline
from vfio_intx.errors import WorldError
from vfio_intx.lab.play import _moved
from vfio_intx.lab.run import missing_needs


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where results folders are made: a short path, as sockets lie in them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json", "{0}/no/result.json"], "No such file or directory (ENOENT)"),
        (["--json", "{0}"], "Is a directory (EISDIR)"),
        (["--keep", "{0}/file"], "File exists (EEXIST)"),
        (["--keep", "{0}/file/below"], "Not a directory (ENOTDIR)"),
        (["--kernel", "5.0"], "'5.0' is not a kernel of the lab"),
    ],
)
def test_a_bad_place_or_kernel_is_told_before_anything_is_booted(
    words: list[str], said: str, tmp_path: Path, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["lab", "run", "smoke", *(word.format(tmp_path) for word in words)]) in (1, 2)
    told = capsys.readouterr().err
    assert said in told
    assert "booting" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    assert list(folders.iterdir()) == []


def test_what_cannot_be_moved_stays_and_is_named(tmp_path: Path) -> None:
    results, keep = tmp_path / "results", tmp_path / "keep"
    (results / "guest").mkdir(parents=True)
    (results / "guest/console").write_text("the last words")
    keep.mkdir()
    (keep / "guest").touch()
    trouble = _moved(results, keep)
    assert isinstance(trouble, WorldError)
    assert "File exists" in str(trouble)
    assert str(results) in (trouble.hint or "")
    assert (results / "guest/console").read_text() == "the last words"


def test_what_is_kept_is_moved_without_sockets(tmp_path: Path) -> None:
    results, keep = tmp_path / "results", tmp_path / "keep"
    results.mkdir()
    (results / "console").write_text("the last words")
    os.mkfifo(results / "serial.sock")
    assert _moved(results, keep) is None
    assert not results.exists()
    assert [path.name for path in keep.iterdir()] == ["console"]


@pytest.mark.lab
@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(missing_needs()), reason="a lab needs QEMU: tools/setup")
def test_sigterm_in_the_middle_takes_l1_down_and_keeps_what_was_asked_for(tmp_path: Path, folders: Path) -> None:
    keep, json = tmp_path / "keep", tmp_path / "result.json"
    argv = [sys.executable, "-m", "vfio_intx", "lab", "run", "smoke", "--keep", str(keep), "--json", str(json)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as lab:
        booted = Deadline.after("L1's console", 120)
        assert booted.poll(lambda: any(path.stat().st_size for path in folders.glob("*/console")))
        lab.send_signal(signal.SIGTERM)
        assert lab.wait(60) == 128 + signal.SIGTERM
    assert (keep / "console").stat().st_size
    assert list(folders.iterdir()) == []
    assert not json.exists()
    assert not list(tmp_path.glob("*.part"))
