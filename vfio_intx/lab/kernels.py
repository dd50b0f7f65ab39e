"""Debian's kernels, unpacked into a cache and never installed.

A kernel is asked for by a short name. What the suite has on the day is taken, kept under package and version, and used
from then on without the network; ``refresh`` looks again. A kernel appears in the cache whole or not at all: it is
unpacked beside its place and renamed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.errors import MissingError, UsageError
from vfio_intx.lab.apt import PackageLists

#: name -> suites to look into, best first.
NAMES: dict[str, tuple[str, ...]] = {
    "6.1": ("bookworm-security", "bookworm"),
    "6.12": ("trixie-security", "trixie", "bookworm-backports"),
    "7.2": ("sid",),
}

DEFAULT = "6.12"

#: A kernel image's dependencies that hold files of the kernel itself (sid: image, modules and base are apart).
_PARTS = re.compile(r"linux-(image|binary|modules|base)-[0-9][A-Za-z0-9.+~-]*")
_RELEASE = re.compile(r"[0-9][A-Za-z0-9.+~_-]{0,60}")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel. ``modules`` is its ``lib/modules/RELEASE`` with a ``modules.dep``."""

    name: str
    release: str
    image: Path
    modules: Path


def cache_root() -> Path:
    """The folder of everything that can be fetched or built again: VFIO_INTX_CACHE, or ``vfio-intx`` in the cache."""
    named = os.environ.get("VFIO_INTX_CACHE")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "vfio-intx"


def cache_folder(name: str) -> Path:
    """A folder of the cache, made if need be. :raise MissingError: if it cannot be written."""
    folder = cache_root() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise MissingError(
            f"the cache {cache_root()} cannot be written: {error.strerror}",
            hint="name a folder that can be, with some 1 GiB of space, by VFIO_INTX_CACHE",
        ) from error
    return folder


def find(name: str) -> Kernel | None:
    """The kernel of that name, if the cache has it; the network is not touched."""
    check(name)
    link = cache_root() / "kernels" / name
    return _read(name, link.resolve()) if link.is_dir() else None


def fetch(name: str, say: Say, *, refresh: bool = False) -> Kernel:
    """The kernel of that name, downloaded and unpacked where the cache lacks it.

    :param say: told each step, as a line.
    :param refresh: look for a newer one even if there is one.
    :raise MissingError: if no suite of this machine's mirror has it, or apt and dpkg fail; the cache is as before.
    """
    kernel = find(name)
    if kernel is not None and not refresh:
        return kernel
    kernels = cache_folder("kernels")
    failures = []
    for suite in NAMES[name]:
        try:
            return _fetch_from(suite, name, kernels, say)
        except MissingError as error:
            failures.append(f"{suite}: {error}")
    raise MissingError(
        f"no Debian suite gave a kernel {name} ({'; '.join(failures)})",
        hint="check the network and this machine's apt sources, or take another kernel with --kernel",
    )


def check(name: str) -> None:
    """:raise UsageError: no kernel has that name; it lists those there are."""
    if name not in NAMES:
        raise UsageError(f"{name[:32]!r} is not a kernel of the lab", hint="one of " + ", ".join(NAMES))


def _fetch_from(suite: str, name: str, kernels: Path, say: Say) -> Kernel:
    say(f"kernel {name}: reading the package lists of {suite}")
    lists = PackageLists(suite, cache_root() / "apt" / suite)
    lists.update()
    packages = _parts(lists)
    image = packages[0]
    version = lists.version(image)
    if not image.startswith(f"linux-image-{name}."):
        if suite != "sid":
            raise MissingError(f"it has {image}")
        say(f"kernel {name}: sid has moved on; {image} stands in for it")
    place = kernels / f"{image}_{version.replace(':', '_')}"
    if not place.is_dir():
        _unpack(lists, packages, place, name, say)
    kernel = _read(name, place)
    if kernel is None:
        raise MissingError(f"{image} {version} holds no bootable image")
    _point(kernels / name, place)
    return kernel


def _parts(lists: PackageLists) -> list[str]:
    """The packages that make up the suite's kernel, the image first."""
    found: list[str] = []
    waiting = ["linux-image-amd64"]
    while waiting:
        for package in lists.depends(waiting.pop(0)):
            if _PARTS.fullmatch(package) and package not in found:
                found.append(package)
                waiting.append(package)
    found.sort(key=lambda package: not package.startswith("linux-image-"))
    if not found:
        raise MissingError("it has no linux-image-amd64")
    return found


def _unpack(lists: PackageLists, packages: list[str], place: Path, name: str, say: Say) -> None:
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=place.parent) as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        for package in packages:
            say(f"kernel {name}: fetching {package}")
            archive = lists.download(package, Path(scratch))
            _command(["dpkg", "-x", str(archive), str(tree)])
            archive.unlink()
        (release,) = _releases(tree)
        say(f"kernel {name}: indexing the modules of {release}")
        if not (tree / "lib").exists():
            (tree / "lib").symlink_to("usr/lib")
        _command(["depmod", "-b", str(tree), release])
        shutil.rmtree(tree / "usr/share", ignore_errors=True)
        tree.rename(place)


def _command(argv: list[str]) -> None:
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True, env={**os.environ, "PATH": search_path()})
    except FileNotFoundError as error:
        raise MissingError(f"{argv[0]} is not installed", hint="apt-get install dpkg kmod") from error
    except subprocess.CalledProcessError as error:
        raise MissingError(f"{argv[0]} failed: {error.stderr.strip()[-300:]}") from error


def search_path() -> str:
    """PATH with the folders of administrators' programs, which an ordinary user's PATH may lack."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"


def _releases(tree: Path) -> list[str]:
    for base in (tree / "lib/modules", tree / "usr/lib/modules"):
        if base.is_dir():
            names = [path.name for path in base.iterdir() if _RELEASE.fullmatch(path.name)]
            if len(names) == 1:
                return names
    raise MissingError("the packages do not hold the modules of exactly one kernel")


def _read(name: str, place: Path) -> Kernel | None:
    """The kernel unpacked at *place*, in either of Debian's layouts; None if it is not whole."""
    try:
        (release,) = _releases(place)
    except MissingError:
        return None
    modules = place / "lib/modules" / release
    for image in (place / "boot" / f"vmlinuz-{release}", modules / "vmlinuz"):
        if image.is_file() and (modules / "modules.dep").is_file():
            return Kernel(name, release, image, modules)
    return None


def _point(link: Path, place: Path) -> None:
    """Make *link* name *place*, in one step."""
    scratch = link.with_name(f".{link.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(place.name)
    scratch.rename(link)
