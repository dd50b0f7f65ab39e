"""Recordings of real kernels, joined: what was recorded on 6.1, 6.12, 6.18 and 7.2 must always read the same."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from vfio_intx.errors import MissingError, VerifyError
from vfio_intx.observe.recording import Recorder, load
from vfio_intx.observe.spans import Joiner
from vfio_intx.observe.summary import Summary

GOLDEN = Path(__file__).parents[1] / "golden/tracefs"
RECORDINGS = sorted(path.parent for path in GOLDEN.glob("*/*/recording.json"))


def read(folder: Path) -> dict[str, object]:
    """What a recording comes to."""
    recording = load(folder)
    joiner = Joiner(recording.target)
    joiner.feed(recording.events)
    joiner.finish()
    summary = Summary()
    summary.add(joiner.done)
    evidence = summary.evidence()
    return {
        "damaged": recording.damaged,
        "events": len(recording.events),
        "interrupts": summary.interrupts,
        "handled": joiner.handled,
        "restated": joiner.restated,
        "oddities": {oddity.value: count for oddity, count in sorted(joiner.counts.items(), key=str)},
        "scheme": evidence.speaks_for.value if evidence and evidence.speaks_for else None,
        "wakeups_per_interrupt": summary.wakeups_per_interrupt,
        "stages": [stage.stage.value for stage in summary.stages()],
        "whole_us": {name: round(value, 1) for name, value in summary.whole.microseconds().items()},
    }


@pytest.mark.parametrize("folder", RECORDINGS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_recording_reads_as_it_did(folder: Path) -> None:
    expected = folder / "expected.json"
    found = read(folder)
    if os.environ.get("VFIO_INTX_REGENERATE"):
        expected.write_text(json.dumps(found, indent=2) + "\n")
    assert found == json.loads(expected.read_text())
    assert found["scheme"] == folder.name
    assert found["damaged"] == 0


def test_there_are_recordings_of_every_kernel() -> None:
    assert {folder.parent.name for folder in RECORDINGS} >= {"6.1", "6.12", "6.18", "7.2"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDINGS[0], tmp_path / "copy"))


def test_a_recording_survives_being_written_again(copy: Path, tmp_path: Path) -> None:
    recording = load(copy)
    head = json.loads((copy / "recording.json").read_text())
    recorder = Recorder()
    for name in ("header_page", "header_event", *(f"formats/{path.name}" for path in (copy / "formats").iterdir())):
        recorder.described(name, (copy / name).read_text())
    at: dict[int, int] = {}
    for cpu, size in head["pages"]:
        whole = gzip.decompress((copy / f"cpu{cpu}.pages.gz").read_bytes())
        recorder.page(cpu, whole[at.get(cpu, 0) : at.get(cpu, 0) + size])
        at[cpu] = at.get(cpu, 0) + size
    recorder.save(tmp_path / "again", recording.kernel, recording.target)
    assert load(tmp_path / "again") == recording


def test_a_damaged_recording_is_refused_or_read_in_part_and_never_fatal(copy: Path) -> None:
    pages = next(copy.glob("cpu*.pages.gz"))
    raw = bytearray(gzip.decompress(pages.read_bytes()))
    raw[8:12] = (5000).to_bytes(4, "little")  # more data than the page has
    pages.write_bytes(gzip.compress(bytes(raw)))
    assert load(copy).damaged == 1
    pages.write_bytes(b"not a page")
    with pytest.raises(VerifyError):
        load(copy)
    pages.unlink()
    with pytest.raises(MissingError):
        load(copy)
    (copy / "recording.json").write_text("{}")
    with pytest.raises(VerifyError):
        load(copy)
