"""QEMU's command line, as far as it tells who the VM is and where its monitors are; pure.

The rules are those of ``softmmu/vl.c`` and ``util/qemu-option.c``: options come with one dash or two, a value is a
list of ``key=value`` divided by commas, ``,,`` is a comma, and a first item without ``=`` has the option's own key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

_PIECE = re.compile(r"((?:[^,]|,,)*)(?:,|$)")


class MonitorAddress(msgspec.Struct, frozen=True):
    """Where a QMP monitor is, by the command line: a socket's path, or a descriptor that QEMU inherited.

    :ivar words: the option as it was written, for messages.
    """

    words: str
    path: str | None = None
    fd: int | None = None


class CommandLine(msgspec.Struct, frozen=True):
    """What a QEMU was started with.

    :ivar monitors: its QMP monitors that are sockets on this machine, in order.
    :ivar elsewhere: its QMP monitors that are no Unix socket, as written.
    :ivar split_irqchip: the ``kernel-irqchip=`` value of the machine or accelerator, None where not given.
    """

    name: str | None
    uuid: str | None
    machine: str | None
    kernel_irqchip: str | None
    monitors: tuple[MonitorAddress, ...]
    elsewhere: tuple[str, ...]


def options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of each option, in order; a flag without a value gets the next word, which is harmless."""
    for word, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        if word.startswith("-") and len(word) > 1:
            yield word.lstrip("-"), following


def keys(value: str, own: str) -> dict[str, str]:
    """The items of one option's value. A first item without ``=`` is that of the key *own*; the last of a key wins."""
    found: dict[str, str] = {}
    for number, piece in enumerate(_split(value)):
        key, equals, text = piece.partition("=")
        if equals:
            found[key] = text
        else:
            found[own if number == 0 else key] = piece if number == 0 else "on"
    return found


def _split(value: str) -> list[str]:
    pieces = [match[1].replace(",,", ",") for match in _PIECE.finditer(value)]
    return pieces[:-1] if len(pieces) > 1 and pieces[-1] == "" else pieces


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """What the words of ``/proc/PID/cmdline`` say. Nothing is refused: what makes no sense is left out."""
    name = uuid = machine = irqchip = None
    chardevs: dict[str, dict[str, str]] = {}
    wanted: list[tuple[str, str]] = []  # (how it was written, chardev id or the address itself)
    for option, value in options(argv):
        if option == "name":
            name = keys(value, "guest").get("guest", name)
        elif option == "uuid":
            uuid = value
        elif option in ("machine", "M"):
            found = keys(value, "type")
            machine, irqchip = found.get("type", machine), found.get("kernel-irqchip", irqchip)
        elif option == "accel":
            irqchip = keys(value, "accel").get("kernel-irqchip", irqchip)
        elif option == "chardev":
            found = keys(value, "backend")
            chardevs[found.get("id", "")] = found
        elif option in ("qmp", "qmp-pretty"):
            wanted.append((f"-{option} {value}", f"address {value}"))
        elif option == "mon":
            found = keys(value, "chardev")
            if found.get("mode") == "control":
                wanted.append((f"-mon {value}", found.get("chardev", "")))
    placed = [_address(words, target, chardevs) for words, target in wanted]
    monitors = tuple(one for one in placed if one.path is not None or one.fd is not None)
    elsewhere = tuple(one.words for one in placed if one.path is None and one.fd is None)
    return CommandLine(name, uuid, machine, irqchip, monitors, elsewhere)


def _address(words: str, target: str, chardevs: dict[str, dict[str, str]]) -> MonitorAddress:
    if target.startswith("address unix:"):
        return MonitorAddress(words, path=keys(target.removeprefix("address unix:"), "path").get("path"))
    chardev = chardevs.get(target.removeprefix("address chardev:"), {})
    if chardev.get("backend") != "socket" or "host" in chardev:
        return MonitorAddress(words)
    number = chardev.get("fd", "")
    fd = int(number) if number.isascii() and number.isdigit() and len(number) < 7 else None
    return MonitorAddress(words, path=chardev.get("path"), fd=fd)
