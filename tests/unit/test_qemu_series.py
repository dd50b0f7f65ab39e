"""The series itself: listed, well-formed, the same changes for every base; and how a build of it is named."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vfio_intx.errors import MissingError, UsageError
from vfio_intx.lab import build_qemu
from vfio_intx.lab.qemu_series import BASES, LAB, PATCHES, base, key, patches

_ALL = [patch for one in (*BASES.values(), LAB) for patch in patches(one)]


@pytest.mark.parametrize("name", [*BASES, LAB.name])
def test_the_series_lists_every_patch(name: str) -> None:
    listed = [patch.name for patch in patches(base(name))]
    assert listed == sorted(path.name for path in (PATCHES / name).glob("*.patch"))


def test_the_lab_has_a_series_of_its_own() -> None:
    assert [patch.parent.name for patch in patches(base(LAB.name))] == ["lab"]
    assert LAB.name not in BASES


def test_every_base_gets_the_same_changes_and_the_older_one_a_mend_of_its_own() -> None:
    subjects = {name: [_subject(patch) for patch in patches(one)] for name, one in BASES.items()}
    own = "Subject: [PATCH] kvm: keep vCPUs out of KVM_RUN while device memory is added"
    assert subjects["7.2"] == [*subjects["10.0"], own]


def _subject(patch: Path) -> str:
    first = patch.read_text("utf-8").splitlines()[0]
    assert first.startswith("Subject: [PATCH] "), patch
    return first


@pytest.mark.parametrize("patch", _ALL, ids=lambda patch: f"{patch.parent.name}-{patch.name[:4]}")
def test_a_patch_says_why_and_claims_no_author(patch: Path) -> None:
    message, _, diff = patch.read_text("utf-8").partition("\n---\n")
    assert len(message.splitlines()) > 5
    assert all(len(line) <= 76 for line in message.splitlines()[1:]), "a commit message has lines of 76 characters"
    assert not re.search(r"^(From|Signed-off-by|Reviewed-by):", message, re.M)
    assert re.search(r"^diff --git a/", diff, re.M)
    assert not re.search(r"^\+.*[ \t]$", diff, re.M), "it adds white space at the end of a line"


def test_a_key_follows_what_is_built(tmp_path: Path) -> None:
    one, two = tmp_path / "0001-a.patch", tmp_path / "0002-b.patch"
    one.write_text("a", "utf-8")
    two.write_text("b", "utf-8")
    stock = base("10.0")
    keys = {key(stock, applied) for applied in ((), (one,), (one, two), (two, one))}
    keys.add(key(replace(stock, flags=()), ()))
    assert len(keys) == 5
    assert key(stock, (one, two)) == key(stock, (one, two))


@pytest.mark.parametrize("line", ["../x.patch", "0001-gone.patch", "0001-a.patch; rm", "/etc/passwd"])
def test_a_series_that_lists_something_else_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "10.0").mkdir()
    (tmp_path / "10.0" / "series").write_text(f"# comment\n\n{line}\n", "utf-8")
    with pytest.raises(MissingError, match="no patch beside it"):
        patches(base("10.0"), tmp_path)


def test_a_tree_without_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        patches(base("7.2"), tmp_path)


def test_an_unknown_base_is_refused() -> None:
    with pytest.raises(UsageError, match="no series for QEMU"):
        base("6.0")


def test_what_is_not_built_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_INTX_CACHE", str(tmp_path))
    assert build_qemu.find("7.2") is None
    with pytest.raises(MissingError) as caught:
        build_qemu.require_built("7.2", stock=True)
    assert caught.value.hint is not None
    assert "tools/build-qemu --base 7.2 --stock" in caught.value.hint


def test_what_is_built_is_found_without_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_INTX_CACHE", str(tmp_path))
    place = tmp_path / "qemu" / f"10.0-{key(base('10.0'), patches(base('10.0')))}" / "bin"
    place.mkdir(parents=True)
    (place / "qemu-system-x86_64").touch()
    said: list[str] = []
    assert build_qemu.build("10.0", said.append).program == place / "qemu-system-x86_64"
    assert said == ["QEMU 10.0 is ready"]
    assert build_qemu.find("10.0", stock=True) is None
