"""Reach a Debian suite that this machine is not set up for, without touching the system's package state.

A second set of package lists lives in a folder of ours. The mirror's address and its keys are those of the machine's
own apt sources, so that a private mirror, a proxy or a snapshot goes on being used.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.errors import MissingError

#: Options of a source that say how far it is to be trusted; they hold for every suite of the same mirror.
_KEPT = ("signed-by", "trusted", "check-valid-until", "allow-insecure")
_BASE_SUITE = re.compile(r"(debian-)?(buster|bullseye|bookworm|trixie|forky|duke|stable|testing|sid|unstable)")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,120}")
_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Source:
    """One ``deb`` entry: where, which suites, and its options by apt's one-line names."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...]


def parse_one_line(text: str) -> Iterator[Source]:
    """The ``deb`` entries of a ``sources.list``; what cannot be read is passed over, as apt warns of it anyway."""
    for line in text.splitlines():
        match = re.fullmatch(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+\S+)*)", line.split("#", 1)[0].strip())
        if match:
            options, uri, suite, components = match.groups()
            pairs = tuple(_pair(word) for word in (options or "").split() if "=" in word)
            yield Source(uri, (suite,), tuple(components.split()), pairs)


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name.lower(), value


def parse_deb822(text: str) -> Iterator[Source]:
    """The enabled ``deb`` stanzas of a ``.sources`` file."""
    for stanza in re.split(r"\n\s*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").strip().lower() == "no":
            continue
        options = tuple((name, fields[name]) for name in _KEPT if name in fields)
        for uri in fields.get("uris", "").split():
            yield Source(
                uri, tuple(fields.get("suites", "").split()), tuple(fields.get("components", "").split()), options
            )


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in (" ", "\t") and name:
            # Continuation lines matter for an inline key; a lone dot stands for an empty one.
            fields[name] += "\n" + ("" if line.strip() == "." else line.strip())
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def machine_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Every ``deb`` entry of this machine, in apt's order."""
    found: list[Source] = []
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for file in files:
        if file.is_file() and file.suffix in (".list", ".sources"):
            text = file.read_text("utf-8", "replace")
            found += parse_deb822(text) if file.suffix == ".sources" else parse_one_line(text)
    return found


def mirror_for(suite: str, sources: Iterable[Source]) -> Source:
    """The source that serves *suite*: the security archive for ``…-security``, else the main one.

    :raise MissingError: if the machine has no such source with the component ``main``.
    """
    wants_security = suite.endswith("-security")
    for source in sources:
        if "main" not in source.components:
            continue
        if wants_security and any(name.endswith("-security") for name in source.suites):
            return source
        if not wants_security and any(_BASE_SUITE.fullmatch(name) for name in source.suites):
            return source
    kind = "security " if wants_security else ""
    raise MissingError(
        f"this machine's apt sources name no Debian {kind}mirror",
        hint="add one to /etc/apt/sources.list.d, as a Debian installation has it",
    )


class PackageLists:
    """The package lists of one suite, kept in *folder*; the system's own are neither read nor changed."""

    def __init__(
        self, suite: str, folder: Path, sources: Iterable[Source] | None = None, *, source: bool = False
    ) -> None:
        self.suite = suite
        self._kind = "deb-src" if source else "deb"
        self.folder = folder
        self._source = mirror_for(suite, machine_sources() if sources is None else sources)

    def update(self) -> None:
        """Read the suite's index from the mirror. :raise MissingError: with apt's words if that fails."""
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        (self.folder / "suite.list").write_text(self._line(), "utf-8")
        self._apt("apt-get", "update", "--error-on=any")

    def depends(self, package: str) -> list[str]:
        """The packages that *package* depends on, alternatives and virtual ones left out."""
        text = self._apt("apt-cache", "depends", "--important", package)
        names = [line.split(":", 1)[1].strip() for line in text.splitlines() if re.match(r"\s*(Pre)?Depends:", line)]
        return [name for name in names if _PACKAGE.fullmatch(name)]

    def version(self, package: str) -> str:
        """The version of *package* that would be downloaded. :raise MissingError: if the suite lacks it."""
        match = re.search(r"^Version: (\S+)$", self._apt("apt-cache", "show", "--no-all-versions", package), re.M)
        if match is None:
            raise MissingError(f"{self.suite} lacks {package}")
        return match[1]

    def download(self, package: str, into: Path) -> Path:
        """Fetch and verify the archive of *package*. :raise MissingError: with apt's words if that fails."""
        folder = into / package
        folder.mkdir()
        self._apt("apt-get", "download", package, cwd=folder)
        (archive,) = folder.glob("*.deb")
        return archive

    def download_source(self, package: str, folder: Path) -> Path:
        """Fetch and verify the source of *package*; its ``.dsc``. For lists made with *source*.

        :raise MissingError: with apt's words if that fails.
        """
        # Whole or not at all, and only the newest: what an earlier run left is of no use to anybody.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._apt("apt-get", "source", "--download-only", package, cwd=folder)
        (description,) = folder.glob("*.dsc")
        return description

    def _line(self) -> str:
        options = dict(self._source.options)
        key = options.get("signed-by", "")
        if "BEGIN PGP" in key:
            # A key written into the stanza itself: one-line sources can only name a file.
            file = self.folder / "key.asc"
            file.write_text(key.strip() + "\n", "utf-8")
            options["signed-by"] = str(file)
        kept = " ".join(f"{name}={value}" for name, value in options.items() if name in _KEPT)
        return f"{self._kind} {f'[{kept}] ' if kept else ''}{self._source.uri} {self.suite} main\n"

    def _apt(self, program: str, *words: str, cwd: Path | None = None) -> str:
        options = {
            "Dir::Etc::sourcelist": self.folder / "suite.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::State::Lists": self.folder / "lists",
            "Dir::Cache": self.folder / "cache",
            # The sandbox user cannot write into a folder of ours; apt would only warn and go on as we are.
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        argv = [program, "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}")), *words]
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                argv,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
        except FileNotFoundError as error:
            raise MissingError(f"{program} is not installed: kernels come from Debian packages") from error
        except subprocess.TimeoutExpired as error:
            raise MissingError(f"{shlex.join((program, *words))} did not end within {_SECONDS} s") from error
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no reason given"]
            raise MissingError(f"{shlex.join((program, *words))} failed: {reason[0]}")
        return done.stdout
