"""Build a small QEMU from the distribution's source package, with our patches or without, once for each series.

A build lives in the cache under ``qemu/BASE-KEY`` (see :func:`vfio_intx.lab.qemu_series.key`), and appears there whole
or not at all: it is built beside its place and renamed. The source package comes through the machine's own apt
configuration with package lists of our own, so nothing of the system's package state changes, except that root has
missing build dependencies installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.errors import MissingError, WorldError
from vfio_intx.lab.apt import PackageLists
from vfio_intx.lab.kernels import cache_root
from vfio_intx.lab.qemu_series import BASES, DEFAULT_BASE, Base, base, key, patches

__all__ = ["BASES", "DEFAULT_BASE", "Built", "Tree", "build", "build_dependencies", "find", "require_built", "tree"]

Say = Callable[[str], None]

#: Debian packages that the build needs, by their names in bookworm and trixie.
PACKAGES = (
    "gcc",
    "pkg-config",
    "flex",
    "bison",
    "python3-venv",
    "patch",
    "dpkg-dev",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "libslirp-dev",
    "libfdt-dev",
    "libattr1-dev",
    "libcap-ng-dev",
)
#: 1.5 is the oldest meson that QEMU 10.0 takes; Debian 12 has an older one, hence the virtual environment.
TOOLS = ("meson>=1.5,<2", "ninja", "setuptools", "wheel", "tomli", "distlib")

_PROGRAM = "qemu-system-x86_64"
_STEP = re.compile(r"\[(\d+)/(\d+)\]")
_TAIL = 25


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build."""

    base: Base
    folder: Path

    @property
    def program(self) -> Path:
        """QEMU itself, to be run by this path: it finds the machine's firmware by itself."""
        return self.folder / "bin" / _PROGRAM


@dataclass(frozen=True, slots=True)
class Tree:
    """A patched and configured source tree. ``environment`` is what its build tools are run with."""

    base: Base
    source: Path
    objects: Path
    applied: tuple[Path, ...]
    environment: dict[str, str]


def _wanted(name: str, stock: bool) -> tuple[Base, tuple[Path, ...], Built]:
    chosen = base(name)
    applied = () if stock else patches(chosen)
    return chosen, applied, Built(chosen, cache_root() / "qemu" / f"{name}-{key(chosen, applied)}")


def find(name: str, *, stock: bool = False) -> Built | None:
    """The build of that base with today's series (or with none, if *stock*), if the cache has it."""
    built = _wanted(name, stock)[2]
    return built if built.program.is_file() else None


def require_built(name: str, *, stock: bool = False) -> Built:
    """Like :func:`find`. :raise MissingError: with the command to run, where the cache lacks it."""
    built = find(name, stock=stock)
    if built is None:
        which = "without patches" if stock else "with this tree's series"
        raise MissingError(
            f"QEMU {name} {which} is not in the cache",
            hint=f"tools/build-qemu --base {name}{' --stock' if stock else ''} (minutes)",
        )
    return built


def build(name: str, say: Say, *, stock: bool = False, source: Path | None = None) -> Built:
    """The build of that base, made if the cache lacks it.

    :param source: an unpacked source tree to take (it is copied); None to fetch the distribution's.
    :raise MissingError: something it needs cannot be had. :raise WorldError: a patch does not apply, or a step fails,
        with the end of its output as notes. The cache is then as before.
    """
    built = find(name, stock=stock)
    if built is None:
        with tree(name, say, stock=stock, source=source) as ready:
            compile_programs(ready, [_PROGRAM], say)
            built = keep(ready, stock=stock)
    say(f"QEMU {name} is ready")
    return built


@contextmanager
def tree(name: str, say: Say, *, stock: bool = False, source: Path | None = None) -> Iterator[Tree]:
    """A configured tree with the series applied, gone at the end of the block. Raises as :func:`build` does."""
    chosen, applied, _ = _wanted(name, stock)
    build_dependencies(say)
    environment = _environment(_tools(say))
    work = cache_root() / "qemu"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".build-{name}-", dir=work) as scratch:
        folder = Path(scratch)
        _unpack(chosen, source, folder / "source", say)
        for patch in applied:
            say(f"applying {patch.name}")
            _run(["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", "-i", str(patch)], folder / "source")
        (folder / "objects").mkdir()
        ready = Tree(chosen, folder / "source", folder / "objects", applied, environment)
        _configure(ready, say)
        yield ready


def build_dependencies(say: Say) -> None:
    """See to the Debian packages of :data:`PACKAGES`; root has them installed.

    :raise MissingError: some are missing and this is not root, or apt failed.
    """
    lacking = [package for package in PACKAGES if not _is_installed(package)]
    if not lacking:
        return
    if os.geteuid() != 0:
        raise MissingError(
            f"to build QEMU, {', '.join(lacking)} must be there", hint="apt-get install " + " ".join(lacking)
        )
    say(f"installing {', '.join(lacking)}")
    _run(["apt-get", "install", "-y", "--no-install-recommends", *lacking], Path("/"))


def _is_installed(package: str) -> bool:
    try:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise MissingError("dpkg-query is not there: QEMU is built from Debian's source packages") from error
    return done.stdout == "installed"


def _tools(say: Say) -> Path:
    """A virtual environment with meson and ninja, kept in the cache; its folder of programs."""
    place = cache_root() / "qemu" / "tools"
    if not (place / "bin" / "meson").is_file():
        say("fetching meson and ninja")
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        # Not sys.executable's own environment: QEMU's configure makes one of its own on top of this.
        python = getattr(sys, "_base_executable", "") or sys.executable
        _run([python, "-m", "venv", str(place)], place.parent)
        _run([str(place / "bin" / "pip"), "install", "-q", *TOOLS], place.parent)
    return place / "bin"


def _environment(programs: Path) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    }
    # ccache, where it is installed, has a second build in a minute: paths in it are relative to the build.
    return {
        **kept,
        "PATH": f"{programs}:{kept.get('PATH', '/usr/bin:/bin')}",
        "LC_ALL": "C.UTF-8",
        "CCACHE_NOHASHDIR": "1",
    }


def _unpack(chosen: Base, source: Path | None, into: Path, say: Say) -> None:
    if source is not None:
        if not (source / "configure").is_file() or not (source / "hw/vfio/pci.c").is_file():
            raise MissingError(f"{source} is no unpacked QEMU source")
        say(f"copying {source}")
        shutil.copytree(source, into, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        return
    say(f"fetching QEMU {chosen.release} from {chosen.suite}")
    lists = PackageLists(chosen.suite, cache_root() / "apt" / f"{chosen.suite}-src", source=True)
    lists.update()
    package = lists.download_source("qemu", cache_root() / "qemu" / "source" / chosen.suite)
    if not re.match(rf"qemu_(\d+:)?{re.escape(chosen.release)}[.+]", package.name):
        raise MissingError(
            f"{chosen.suite} has {package.name}, not a QEMU {chosen.release}", hint="name a tree with --source"
        )
    say(f"unpacking {package.name}")
    # apt has verified the package against the signed index; dpkg-source would ask for every maintainer's key.
    _run(["dpkg-source", "--no-check", "-x", str(package), str(into)], into.parent)


def _configure(ready: Tree, say: Say) -> None:
    say("configuring")
    compiler = "ccache gcc" if shutil.which("ccache") else "gcc"
    argv = [str(ready.source / "configure"), f"--cc={compiler}", f"--host-cc={compiler}", *ready.base.flags]
    environment = {**ready.environment, "CCACHE_BASEDIR": str(ready.source.parent)}
    _run(argv, ready.objects, environment)


def compile_programs(ready: Tree, targets: list[str], say: Say) -> None:
    """Build *targets* (names as ninja has them), at low priority, on every CPU. :raise WorldError: if it fails."""
    argv = ["nice", "ninja", "-j", str(os.cpu_count() or 1), *targets]
    environment = {**ready.environment, "CCACHE_BASEDIR": str(ready.source.parent), "NINJA_STATUS": "[%f/%t] "}
    tail: list[str] = []
    told = -1
    with subprocess.Popen(
        argv, cwd=ready.objects, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail = [*tail[1 - _TAIL :], line.rstrip()]
            step = _STEP.match(line)
            percent = 100 * int(step[1]) // int(step[2]) if step else told
            if percent >= told + 5 or (percent == 100 and told != 100):
                say(f"compiling: {percent} %")
                told = percent
    if process.returncode != 0:
        raise _failure(f"ninja {' '.join(targets)}", process.returncode, tail)


def keep(ready: Tree, *, stock: bool) -> Built:
    """Move the compiled program to its place in the cache, without the debugging information that only takes room."""
    built = _wanted(ready.base.name, stock)[2]
    scratch = built.folder.with_name(f".{built.folder.name}.{os.getpid()}")
    (scratch / "bin").mkdir(parents=True)
    _run(["strip", "-g", "-o", str(scratch / "bin" / _PROGRAM), str(ready.objects / _PROGRAM)], scratch)
    (scratch / "series").write_text("".join(f"{patch.name}\n" for patch in ready.applied), "utf-8")
    shutil.rmtree(built.folder, ignore_errors=True)
    scratch.rename(built.folder)
    return built


def _run(argv: list[str], cwd: Path, environment: dict[str, str] | None = None) -> str:
    """The output of one step. :raise WorldError: with the end of its output as notes, if it fails."""
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=environment, text=True, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise MissingError(f"{argv[0]} is not installed") from error
    if done.returncode != 0:
        raise _failure(Path(argv[0]).name, done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines()])
    return done.stdout


def _failure(step: str, status: int, output: list[str]) -> WorldError:
    error = WorldError(f"{step} ended with status {status}")
    for line in output[-_TAIL:]:
        error.add_note(line)
    return error
