"""Who lays claim to a function: driverctl, libvirt, Proxmox, udev rules, modprobe.d, the kernel command line, we.

Everything here is read and named, never written: each of these files belongs to another tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vfio_intx.chain.fact import Fact
from vfio_intx.host.pci import PciFunction
from vfio_intx.host.root import HostRoot, list_names, read_text
from vfio_intx.names import Bdf, escape

_HEX = "[0-9a-fA-F]"
_LIBVIRT_HOSTDEV = r"(?s)<hostdev\b[^>]*>.*?<source>(.*?)</source>"
_LIBVIRT_ADDRESS = (
    rf"<address\s+domain='0x({_HEX}{{1,8}})'\s+bus='0x({_HEX}{{1,2}})'"
    rf"\s+slot='0x({_HEX}{{1,2}})'\s+function='0x([0-7])'"
)
_PROXMOX_DEVICE = r"(?m)^hostpci\d+:\s*(\S+)"
_PROXMOX_PATH = rf"path=((?:{_HEX}{{4}}:)?{_HEX}{{2}}:{_HEX}{{2}}(?:\.[0-7])?)"
_UDEV_OVERRIDE = r"(?a)ATTR\{driver_override\}\s*=\s*\"([\w-]{1,63})\""
_UDEV_ADDRESS = rf"\b{_HEX}{{4,8}}:{_HEX}{{2}}:{_HEX}{{2}}\.[0-7]\b"
_IDS = rf"({_HEX}{{4}}):({_HEX}{{4}})(?::[0-9a-fA-F:]*)?"


class Claim(NamedTuple):
    """One claim on one function.

    :ivar owner: the tool whose file it is.
    :ivar text: what it says, for a person.
    :ivar source: the file.
    :ivar by_ids: True where it names vendor and device, so that twins are meant too.
    :ivar vm: the VM (escaped) that *text* names and that the file *source* is named after, empty for none.
    """

    owner: str
    text: str
    source: str
    by_ids: bool = False
    vm: str = ""

    @classmethod
    def by_vm(cls, owner: str, kind: str, vm: str, source: str) -> Claim:
        """The claim of a VM, which *owner* calls a *kind*."""
        return cls(owner, f"{kind} {vm} passes it through", source, vm=vm)

    def renamed(self, vm: str) -> Claim:
        """The same claim as if its VM were called *vm*."""
        folder, _, file = self.source.rpartition("/")
        source = f"{folder}/{vm}.{file.rpartition('.')[2]}"
        return self._replace(text=self.text.replace(f" {self.vm} ", f" {vm} ", 1), source=source, vm=vm)


class _Configured(NamedTuple):
    """What the configuration files of a host say, parsed once.

    :ivar addresses: each with whether the whole slot is meant.
    :ivar ids: vendor and device.
    :ivar drivers: drivers that are made to load after vfio-pci.
    """

    addresses: tuple[tuple[Bdf, bool, Claim], ...]
    ids: tuple[tuple[int, int, Claim], ...]
    drivers: tuple[tuple[str, Claim], ...]


def read_owners(
    root: HostRoot, functions: Iterable[PciFunction], command_line: Fact[str]
) -> dict[Bdf, tuple[Claim, ...]]:
    """The claims on each function that has any; *command_line* is the kernel's."""
    modprobe = tuple(_modprobe(root))
    configured = _Configured(
        (*_driverctl(root), *_libvirt(root), *_proxmox(root), *_udev(root), *_records(root)),
        (*_vfio_options(modprobe), *_command_line(command_line)),
        tuple(_softdeps(modprobe)),
    )
    found = ((function.bdf, tuple(_claims(function, configured))) for function in functions)
    return {bdf: claims for bdf, claims in found if claims}


def _claims(function: PciFunction, configured: _Configured) -> Iterator[Claim]:
    bdf = function.bdf
    for address, whole_slot, claim in configured.addresses:
        same_slot = (address.domain, address.bus, address.slot) == (bdf.domain, bdf.bus, bdf.slot)
        if address == bdf or (whole_slot and same_slot):
            yield claim
    ids = function.ids.value
    if ids is not None:
        yield from (claim for vendor, device, claim in configured.ids if (vendor, device) == (ids.vendor, ids.device))
    if function.driver.value:
        yield from (claim for driver, claim in configured.drivers if driver == function.driver.value)


def _files(root: HostRoot, folder: str, suffix: str) -> Iterator[tuple[str, str, str]]:
    """(name, source, text) of each readable file there."""
    for name in list_names(root.file(folder), root=root).get(()):
        if name.endswith(suffix):
            text = read_text(root.file(folder, name), root=root)
            if text.value is not None:
                yield name, text.source, text.value


def _driverctl(root: HostRoot) -> Iterator[tuple[Bdf, bool, Claim]]:
    for name, source, text in _files(root, "etc/driverctl.d", ""):
        bdf = Bdf.maybe(name.removeprefix("pci-"))
        if bdf is not None:
            yield bdf, False, Claim("driverctl", f"sets driver {escape(text.strip()[:64])} at boot", source)


def _libvirt(root: HostRoot) -> Iterator[tuple[Bdf, bool, Claim]]:
    for folder in ("etc/libvirt/qemu", "run/libvirt/qemu"):
        for name, source, text in _files(root, folder, ".xml"):
            domain = escape(name.removesuffix(".xml"))
            for block in re.findall(_LIBVIRT_HOSTDEV, text):
                match = re.search(_LIBVIRT_ADDRESS, block)
                if match:
                    parts = [int(part, 16) for part in match.groups()]
                    yield Bdf(*parts), False, Claim.by_vm("libvirt", "domain", domain, source)


def _proxmox(root: HostRoot) -> Iterator[tuple[Bdf, bool, Claim]]:
    for name, source, text in _files(root, "etc/pve/qemu-server", ".conf"):
        vm = escape(name.removesuffix(".conf"))
        for value in re.findall(_PROXMOX_DEVICE, text):
            for word in value.split(",")[0].split(";"):
                yield from _slot(word.removeprefix("host="), Claim.by_vm("proxmox", "VM", vm, source))
    for _, source, text in _files(root, "etc/pve/mapping", "pci.cfg"):
        for path in re.findall(_PROXMOX_PATH, text):
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


def _udev(root: HostRoot) -> Iterator[tuple[Bdf, bool, Claim]]:
    for folder in ("etc/udev/rules.d", "run/udev/rules.d"):
        for name, source, text in _files(root, folder, ".rules"):
            owner = "vfio-intx" if name.startswith("70-vfio-intx-") else "udev"
            for line in text.replace("\\\n", "").splitlines():
                driver = re.search(_UDEV_OVERRIDE, line)
                for word in re.findall(_UDEV_ADDRESS, line) if driver and not line.lstrip().startswith("#") else ():
                    bdf = Bdf.maybe(word)
                    if bdf is not None and driver:
                        claim = Claim(owner, f"a rule sets driver_override to {escape(driver[1])}", source)
                        yield bdf, False, claim


def _modprobe(root: HostRoot) -> Iterator[tuple[list[str], str]]:
    for folder in ("etc/modprobe.d", "run/modprobe.d", "lib/modprobe.d"):
        for _, source, text in _files(root, folder, ".conf"):
            for line in text.splitlines():
                words = line.split("#", 1)[0].replace("vfio_pci", "vfio-pci").split()
                if words:
                    yield words, source


def _vfio_options(lines: Iterable[tuple[list[str], str]]) -> Iterator[tuple[int, int, Claim]]:
    for words, source in lines:
        if words[:2] == ["options", "vfio-pci"]:
            yield from _by_ids(words[2:], "ids=", "modprobe.d", source)


def _softdeps(lines: Iterable[tuple[list[str], str]]) -> Iterator[tuple[str, Claim]]:
    for words, source in lines:
        if words[0] == "softdep" and len(words) > 2 and "vfio-pci" in words[2:]:
            text = f"makes {escape(words[1])} load after vfio-pci"
            yield words[1], Claim("modprobe.d", text, source, by_ids=True)


def _command_line(text: Fact[str]) -> Iterator[tuple[int, int, Claim]]:
    words = (text.value or "").replace("vfio_pci", "vfio-pci").split()
    yield from _by_ids(words, "vfio-pci.ids=", "kernel command line", text.source)


def _by_ids(words: Iterable[str], prefix: str, owner: str, source: str) -> Iterator[tuple[int, int, Claim]]:
    for word in words:
        for item in word.removeprefix(prefix).strip('"').split(",") if word.startswith(prefix) else ():
            match = re.fullmatch(_IDS, item)
            if match:
                claim = Claim(owner, f"gives every {match[1]}:{match[2]} to vfio-pci", source, by_ids=True)
                yield int(match[1], 16), int(match[2], 16), claim
