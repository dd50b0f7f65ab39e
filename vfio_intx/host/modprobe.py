"""Which cards modprobe.d and the kernel command line give away: by ids, to vfio-pci or pci-stub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from vfio_intx.chain.fact import Fact
from vfio_intx.host.claim import Claim, Files, IdPattern
from vfio_intx.names import escape

#: Where kmod looks, in its order (modprobe.d(5)): of two files of one name the first is read.
_FOLDERS = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
#: Drivers that take the cards whose ids they are told (``vfio_pci_fill_ids`` in drivers/vfio/pci/vfio_pci.c).
_TAKERS = ("vfio-pci", "pci-stub")
_WORD = r'(?:[^\s"]|"[^"]*"?)+'
_ID = r"(?:0[xX])?[0-9a-fA-F]{1,8}"


def module_lines(files: Files) -> tuple[tuple[list[str], str], ...]:
    """The words of each line of modprobe.d, and its file."""
    return tuple(_lines(files))


def _lines(files: Files) -> Iterator[tuple[list[str], str]]:
    seen: set[str] = set()
    for folder in _FOLDERS:
        for name, source, text in files.in_folder(folder, ".conf"):
            if name in seen:
                continue
            seen.add(name)
            for line in text.replace("\\\n", "").splitlines():
                words = [] if line.startswith("#") else line.split()
                if len(words) > 1:
                    yield [words[0], _module(words[1]), *words[2:]], source


def _module(name: str) -> str:
    return name.replace("_", "-")


def claims_by_options(lines: Iterable[tuple[list[str], str]]) -> Iterator[tuple[IdPattern, Claim]]:
    """``options vfio-pci ids=…``."""
    for words, source in lines:
        if words[0] == "options" and words[1] in _TAKERS:
            for word in words[2:]:
                yield from _by_ids(word.replace('"', ""), "ids=", words[1], "modprobe.d", source)


def claims_by_softdep(lines: Iterable[tuple[list[str], str]]) -> Iterator[tuple[str, Claim]]:
    """``softdep DRIVER pre: vfio-pci``: the driver (with "-" for "_") that is made to wait."""
    for words, source in lines:
        before = words[2:] if words[0] == "softdep" else []
        before = before[before.index("pre:") + 1 :] if "pre:" in before else []
        before = before[: before.index("post:")] if "post:" in before else before
        if "vfio-pci" in map(_module, before):
            text = f"makes {escape(words[1])} load after vfio-pci"
            yield words[1], Claim("modprobe.d", text, source, by_ids=True)


def claims_by_command_line(text: Fact[str]) -> Iterator[tuple[IdPattern, Claim]]:
    """``vfio-pci.ids=…``, in quotes or not; what follows "--" is not for the kernel (``parse_args``)."""
    for word in re.findall(_WORD, text.value or ""):
        if word == "--":
            return
        name, _, value = word.replace('"', "").partition(".")
        if _module(name) in _TAKERS:
            yield from _by_ids(value, "ids=", _module(name), "kernel command line", text.source)


def _by_ids(word: str, prefix: str, driver: str, owner: str, source: str) -> Iterator[tuple[IdPattern, Claim]]:
    for item in word.removeprefix(prefix).split(",") if word.startswith(prefix) else ():
        if re.fullmatch(rf"{_ID}(?::{_ID}){{1,5}}", item):
            claim = Claim(owner, f"gives every {item.lower()} to {driver}", source, by_ids=True)
            yield IdPattern(*(int(part, 16) for part in item.split(":"))), claim
