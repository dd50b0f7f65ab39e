"""Who lays claim to a function: driverctl, libvirt, Proxmox, udev rules, modprobe.d, the kernel command line, we.

Everything here is read and named, never written: each of these files belongs to another tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vfio_intx.chain.fact import Fact
from vfio_intx.host.claim import Claim, Files, IdPattern
from vfio_intx.host.modprobe import claims_by_command_line, claims_by_options, claims_by_softdep, module_lines
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.root import HostRoot, list_names, read_text
from vfio_intx.names import Bdf, escape

_HEX = "[0-9a-fA-F]"
_LIBVIRT_HOSTDEV = r"(?s)<(?:hostdev\b|interface\b[^>]*\stype='hostdev')[^>]*>.*?<source>(.*?)</source>"
_LIBVIRT_ADDRESS = (
    rf"<address\s+(?:type='pci'\s+)?domain='0x({_HEX}{{1,8}})'\s+bus='0x({_HEX}{{1,2}})'"
    rf"\s+slot='0x({_HEX}{{1,2}})'\s+function='0x([0-7])'"
)
_PROXMOX_DEVICE = r"(?m)^hostpci\d+:\s*(\S+)"
_PROXMOX_SECTION = r"(?m)^\[(?!PENDING\])"
_PROXMOX_MAP = r"(?m)^\s+map\s+(\S+)"
_UDEV_OVERRIDE = r"(?a)ATTR\{driver_override\}\s*=\s*\"([\w-]{1,63})\""
_UDEV_ADDRESS = rf"\b{_HEX}{{4,8}}:{_HEX}{{2}}:{_HEX}{{2}}\.[0-7]\b"
_UDEV_ID = rf"ATTRS?\{{(vendor|device|subsystem_vendor|subsystem_device)\}}==\"0x({_HEX}{{4}})\""


class _Configured(NamedTuple):
    """What the configuration files of a host say, parsed once.

    :ivar addresses: each with whether the whole slot is meant.
    :ivar ids: the cards that are meant by their ids.
    :ivar drivers: drivers that are made to load after vfio-pci, with "-" for "_".
    """

    addresses: tuple[tuple[Bdf, bool, Claim], ...]
    ids: tuple[tuple[IdPattern, Claim], ...]
    drivers: tuple[tuple[str, Claim], ...]


def read_owners(
    root: HostRoot, functions: Iterable[PciFunction], command_line: Fact[str]
) -> tuple[dict[Bdf, tuple[Claim, ...]], tuple[tuple[str, str], ...]]:
    """The claims on each function that has any; *command_line* is the kernel's.

    With them comes which files may hold more and could not be read, each with the reason.
    """
    files = Files(root, {})
    modprobe, rules = module_lines(files), tuple(_udev_rules(files))
    configured = _Configured(
        (*_driverctl(files), *_libvirt(files), *_proxmox(files), *_udev(rules), *_records(root)),
        (*claims_by_options(modprobe), *claims_by_command_line(command_line), *_udev_by_ids(rules)),
        tuple(claims_by_softdep(modprobe)),
    )
    found = ((function.bdf, tuple(_claims(function, configured))) for function in functions)
    return {bdf: claims for bdf, claims in found if claims}, tuple(files.unread.items())


def _claims(function: PciFunction, configured: _Configured) -> Iterator[Claim]:
    bdf = function.bdf
    for address, whole_slot, claim in configured.addresses:
        same_slot = (address.domain, address.bus, address.slot) == (bdf.domain, bdf.bus, bdf.slot)
        if address == bdf or (whole_slot and same_slot):
            yield claim
    ids = function.ids.value
    if ids is not None:
        yield from (claim for pattern, claim in configured.ids if pattern.matches(ids))
    if function.driver.value:
        driver = function.driver.value.replace("_", "-")
        yield from (claim for waiting, claim in configured.drivers if waiting == driver)


def _driverctl(files: Files) -> Iterator[tuple[Bdf, bool, Claim]]:
    for name, source, text in files.in_folder("etc/driverctl.d", ""):
        bdf = Bdf.maybe(name.removeprefix("pci-"))
        if bdf is not None:
            yield bdf, False, Claim("driverctl", f"sets driver {escape(text.strip()[:64])} at boot", source)


def _libvirt(files: Files) -> Iterator[tuple[Bdf, bool, Claim]]:
    for folder in ("etc/libvirt/qemu", "run/libvirt/qemu"):
        for name, source, text in files.in_folder(folder, ".xml"):
            domain = escape(name.removesuffix(".xml"))
            for block in re.findall(_LIBVIRT_HOSTDEV, text):
                match = re.search(_LIBVIRT_ADDRESS, block)
                if match:
                    parts = [int(part, 16) for part in match.groups()]
                    yield Bdf(*parts), False, Claim.by_vm("libvirt", "domain", domain, source)


def _proxmox(files: Files) -> Iterator[tuple[Bdf, bool, Claim]]:
    for name, source, text in files.in_folder("etc/pve/qemu-server", ".conf"):
        vm = escape(name.removesuffix(".conf"))
        # A section is the state of a snapshot; only the first is the VM as it is, and PENDING as it will be.
        now = re.split(_PROXMOX_SECTION, text, maxsplit=1)[0]
        for value in re.findall(_PROXMOX_DEVICE, now):
            for word in value.split(",")[0].split(";"):
                yield from _slot(word.removeprefix("host="), Claim.by_vm("proxmox", "VM", vm, source))
    here = read_text(files.root.file("proc/sys/kernel/hostname"), root=files.root).get("").partition(".")[0]
    for _, source, text in files.in_folder("etc/pve/mapping", "pci.cfg"):
        for words in re.findall(_PROXMOX_MAP, text):
            fields = dict(word.split("=", 1) for word in words.split(",") if "=" in word)
            if fields.get("node", here) == here:  # the file is one for the whole cluster
                for path in fields.get("path", "").split(";"):
                    yield from _slot(path, Claim("proxmox", "a resource mapping offers it to VMs", source))


def _slot(word: str, claim: Claim) -> Iterator[tuple[Bdf, bool, Claim]]:
    # Proxmox takes 05:00 for all functions of a slot.
    bdf = Bdf.maybe(word if "." in word else f"{word}.0")
    if bdf is not None:
        yield bdf, "." not in word, claim


def _records(root: HostRoot) -> Iterator[tuple[Bdf, bool, Claim]]:
    for name in list_names(root.file("var/lib/vfio-intx"), root=root).get(()):
        bdf = Bdf.maybe(name.removesuffix(".record")) if name.endswith(".record") else None
        if bdf is not None:
            text = f"vfio-intx bound it; vfio-intx restore {bdf} gives it back"
            yield bdf, False, Claim("vfio-intx", text, f"/var/lib/vfio-intx/{name}")


def _udev_rules(files: Files) -> Iterator[tuple[str, Claim]]:
    """The lines that set a driver_override, each with the claim that it makes."""
    for folder in ("etc/udev/rules.d", "run/udev/rules.d"):
        for name, source, text in files.in_folder(folder, ".rules"):
            owner = "vfio-intx" if name.startswith("70-vfio-intx-") else "udev"
            for line in text.replace("\\\n", "").splitlines():
                driver = re.search(_UDEV_OVERRIDE, line)
                if driver and not line.lstrip().startswith("#"):
                    yield line, Claim(owner, f"a rule sets driver_override to {escape(driver[1])}", source)


def _udev(rules: Iterable[tuple[str, Claim]]) -> Iterator[tuple[Bdf, bool, Claim]]:
    for line, claim in rules:
        for word in re.findall(_UDEV_ADDRESS, line):
            bdf = Bdf.maybe(word)
            if bdf is not None:
                yield bdf, False, claim


def _udev_by_ids(rules: Iterable[tuple[str, Claim]]) -> Iterator[tuple[IdPattern, Claim]]:
    for line, claim in rules:
        ids = {name: int(value, 16) for name, value in re.findall(_UDEV_ID, line)}
        if {"vendor", "device"} <= ids.keys() and not re.search(_UDEV_ADDRESS, line):
            yield IdPattern(**ids), claim._replace(by_ids=True)
