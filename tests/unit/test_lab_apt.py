"""The machine's apt sources, in both forms, and what is made of them for another suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from vfio_intx.errors import MissingError, UsageError
from vfio_intx.lab import kernels
from vfio_intx.lab.apt import PackageLists, Source, machine_sources, mirror_for, parse_deb822, parse_one_line

DEB822 = """\
# main
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.invalid/debian
Suites: sid
Components: main

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
"""
ONE_LINE = """\
# comment
deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/debian bookworm main contrib # tail
deb-src http://mirror.invalid/debian bookworm main
deb http://other.invalid/apt stable-x non-free
"""


def test_deb822_gives_enabled_binary_sources_with_their_keys() -> None:
    main, security = parse_deb822(DEB822)
    assert (main.uri, main.suites) == ("http://mirror.invalid/debian", ("bookworm", "bookworm-updates"))
    assert dict(main.options) == {"signed-by": "/usr/share/keyrings/debian-archive-keyring.gpg"}
    assert "BEGIN PGP" in dict(security.options)["signed-by"]
    assert "\n\nmQINBF\n" in dict(security.options)["signed-by"]


def test_one_line_gives_binary_sources_with_their_options() -> None:
    main, other = parse_one_line(ONE_LINE)
    assert main == Source(
        "http://mirror.invalid/debian", ("bookworm",), ("main", "contrib"), (("arch", "amd64"), ("signed-by", "/k.gpg"))
    )
    assert other.components == ("non-free",)


def test_all_files_of_the_machine_are_read(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/off.sources.disabled").write_text(DEB822)
    assert len(machine_sources(tmp_path)) == 4
    assert machine_sources(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("suite", "uri"),
    [
        ("sid", "http://mirror.invalid/debian"),
        ("trixie", "http://mirror.invalid/debian"),
        ("bookworm-backports", "http://mirror.invalid/debian"),
        ("trixie-security", "http://mirror.invalid/debian-security"),
    ],
)
def test_a_suite_is_looked_for_where_its_kind_is(suite: str, uri: str) -> None:
    assert mirror_for(suite, parse_deb822(DEB822)).uri == uri


def test_a_machine_without_a_debian_mirror_is_told_so() -> None:
    with pytest.raises(MissingError, match="no Debian mirror"):
        mirror_for("sid", [])
    with pytest.raises(MissingError, match="no Debian security mirror"):
        mirror_for("trixie-security", parse_one_line(ONE_LINE))


def test_an_apt_that_fails_is_quoted_and_the_system_left_alone(tmp_path: Path) -> None:
    source = Source(f"file:{tmp_path}/nothing-here", ("bookworm",), ("main",), (("trusted", "yes"),))
    lists = PackageLists("sid", tmp_path / "lists", [source])
    with pytest.raises(MissingError, match="apt-get update --error-on=any failed"):
        lists.update()
    assert (tmp_path / "lists/suite.list").read_text() == f"deb [trusted=yes] {source.uri} sid main\n"


def test_an_inline_key_becomes_a_file(tmp_path: Path) -> None:
    security = list(parse_deb822(DEB822))[1]
    lists = PackageLists("trixie-security", tmp_path, [Source(f"file:{tmp_path}/x", *_rest(security))])
    with pytest.raises(MissingError):
        lists.update()
    assert f"signed-by={tmp_path}/key.asc" in (tmp_path / "suite.list").read_text()
    assert (tmp_path / "key.asc").read_text().startswith("-----BEGIN PGP")


def _rest(source: Source) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, str], ...]]:
    return source.suites, source.components, source.options


def _unpacked(place: Path, image: str, modules: str) -> None:
    for file in (image, f"{modules}/modules.dep"):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text("")


@pytest.mark.parametrize(
    ("image", "modules"),
    [
        ("boot/vmlinuz-9.9-amd64", "lib/modules/9.9-amd64"),
        ("usr/lib/modules/9.9-amd64/vmlinuz", "usr/lib/modules/9.9-amd64"),
    ],
)
def test_both_layouts_of_a_kernel_are_found_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str, modules: str
) -> None:
    monkeypatch.setenv("VFIO_INTX_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    place = tmp_path / "kernels/linux-image-9.9_1"
    _unpacked(place, image, modules)
    if modules.startswith("usr"):
        (place / "lib").symlink_to("usr/lib")
    (tmp_path / "kernels/6.1").symlink_to(place.name)
    kernel = kernels.fetch("6.1", lambda line: pytest.fail(f"the cache was not enough: {line}"))
    assert kernel.release == "9.9-amd64"
    assert kernel.image.is_file()
    assert (kernel.modules / "modules.dep").is_file()


def test_an_unfinished_kernel_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_INTX_CACHE", str(tmp_path))
    (tmp_path / "kernels/6.1/lib/modules/9.9-amd64").mkdir(parents=True)
    assert kernels.find("6.1") is None
    assert kernels.find("6.12") is None


def test_a_kernel_nobody_knows_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="not a kernel"):
        kernels.fetch("../../etc", lambda line: None)


def test_the_cache_is_where_the_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VFIO_INTX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    assert kernels.cache_root() == Path("/x/cache/vfio-intx")
    monkeypatch.setenv("VFIO_INTX_CACHE", "/y")
    assert kernels.cache_root() == Path("/y")
