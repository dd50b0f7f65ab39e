"""A udev rule that gives a function to vfio-pci at every boot, before its own driver is asked.

The rule matches the function's address and its ids: a card that has moved, or another card in its place, is not
grabbed. It sets ``driver_override`` when udev hears of the function, before udev loads the module that would take it.
A driver that the initramfs loads is there first and stays, unless the rule is in there, too: tools that make one take
the rules of ``/etc/udev/rules.d`` along (initramfs-tools by the hook of package udev). Before a driver that is built
into the kernel no rule comes. ``vfio-intx scan`` tells which driver it has.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.errors import MissingError, RefusedError, WorldError
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.wiring.plan import VFIO_PCI

#: After 60-persistent-*, before 80-drivers.rules, which loads modules by modalias.
_FOLDER = "etc/udev/rules.d"
#: What makes the initramfs anew, by the program that does: Debian's and Ubuntu's, Fedora's and SUSE's, Arch's.
_INITRAMFS = {
    "usr/sbin/update-initramfs": "update-initramfs -u",
    "usr/bin/dracut": "dracut -f",
    "usr/bin/mkinitcpio": "mkinitcpio -P",
}
_NAME = re.compile(r"70-vfio-intx-([0-9a-f]{4,8}-[0-9a-f]{2}-[0-9a-f]{2}\.[0-7])\.rules")
_FIRST_LINE = "# Written by vfio-intx persist; remove it with: vfio-intx persist --remove"


@dataclass(frozen=True, slots=True)
class RuleFile:
    """A udev rule of ours: where it goes, as the host knows the path, and what it says."""

    path: str
    text: str


def rule_for(function: PciFunction) -> RuleFile:
    """The rule for one function. :raise WorldError: if what it is cannot be read."""
    ids = function.ids.value
    if ids is None:
        raise WorldError(f"what {function.bdf} is cannot be read: {function.ids.error}")
    matches = (
        'ACTION=="add"',
        'SUBSYSTEM=="pci"',
        f'KERNEL=="{function.bdf}"',
        f'ATTR{{vendor}}=="0x{ids.vendor:04x}"',
        f'ATTR{{device}}=="0x{ids.device:04x}"',
        f'ATTR{{subsystem_vendor}}=="0x{ids.subsystem_vendor:04x}"',
        f'ATTR{{subsystem_device}}=="0x{ids.subsystem_device:04x}"',
    )
    # Loading vfio-pci probes every function that asks for it; where it was loaded before, this one has to be probed.
    does = (
        f'ATTR{{driver_override}}="{VFIO_PCI}"',
        f'RUN{{builtin}}+="kmod load {VFIO_PCI}"',
        "RUN+=\"/bin/sh -c 'echo $kernel > /sys/bus/pci/drivers_probe'\"",
    )
    text = f"{_FIRST_LINE} {function.bdf}\n{', '.join((*matches, *does))}\n"
    return RuleFile(f"/{_FOLDER}/{_file_name(function.bdf)}", text)


def _file_name(bdf: Bdf) -> str:
    return f"70-vfio-intx-{str(bdf).replace(':', '-')}.rules"


def installed(root: HostRoot, bdf: Bdf) -> RuleFile | None:
    """The rule for that address that is on disk, None where there is none.

    :raise RefusedError: if a file of that name is there that is not of our making.
    """
    path = root.at(_FOLDER, _file_name(bdf))
    try:
        text = path.read_text("utf-8", "backslashreplace") if not path.is_symlink() else ""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WorldError(f"/{_FOLDER}/{path.name} cannot be read: {error.strerror}") from error
    if not text.startswith(_FIRST_LINE):
        raise RefusedError(f"/{_FOLDER}/{path.name} is not of our making; it was left alone", hint="look who wrote it")
    return RuleFile(f"/{_FOLDER}/{path.name}", text)


def initramfs_command(root: HostRoot) -> str | None:
    """The command with which this host makes its initramfs anew, None where there is none that we know."""
    return next((command for tool, command in _INITRAMFS.items() if root.at(tool).exists()), None)


def install(root: HostRoot, rule: RuleFile) -> bool:
    """Put a rule on disk, whole or not at all; whether anything changed.

    :raise RefusedError: if a file of that name is not ours. :raise WorldError: if it cannot be written.
    """
    bdf = _bdf_of(rule.path)
    there = installed(root, bdf)
    if there == rule:
        return False
    path = root.at(rule.path.lstrip("/"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, rule.text)
    except OSError as error:
        raise WorldError(f"{rule.path} cannot be written: {error.strerror}", hint="sudo vfio-intx persist …") from error
    return True


def _replace(path: Path, text: str) -> None:
    # udev reads only names that end in .rules, so it never sees the half-written one.
    new = path.with_name(f".{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def remove(root: HostRoot, bdf: Bdf) -> bool:
    """Take our rule for that address away; whether there was one.

    :raise RefusedError: if the file is not ours. :raise MissingError: if it cannot be removed.
    """
    if installed(root, bdf) is None:
        return False
    try:
        root.at(_FOLDER, _file_name(bdf)).unlink()
    except OSError as error:
        raise MissingError(f"/{_FOLDER}/{_file_name(bdf)} cannot be removed: {error.strerror}") from error
    return True


def _bdf_of(path: str) -> Bdf:
    match = _NAME.fullmatch(path.rpartition("/")[2])
    if match is None:
        raise ValueError(f"{path} is not the name of a rule of ours")
    domain, bus, rest = match[1].split("-")
    return Bdf.parse(f"{domain}:{bus}:{rest}")
