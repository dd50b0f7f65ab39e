"""The kernel itself: release, command line, and what its vfio and kvm modules were told."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import NamedTuple

from vfio_intx.chain.fact import Fact
from vfio_intx.host.root import HostRoot, read_text

#: Debian and Ubuntu write the release they built from into the version, after their own name for it.
_DISTRIBUTION = r"(?a)(?:Debian|-Ubuntu\S*) (\d{1,3})\.(\d{1,3})\.(\d{1,4})"
_RELEASE = r"(?a)(\d{1,3})\.(\d{1,3})(?:\.(\d{1,4})(?<!\.0)(?:[-+].*)?)?"
#: What modules print for a boolean parameter (``param_get_bool`` in kernel/params.c).
_BOOLEANS = {"Y": True, "N": False, "1": True, "0": False}


class KernelFacts(NamedTuple):
    """What this machine's kernel says of itself.

    :ivar version: ``/proc/version``; a distribution names its stable release there, which ``release`` does not.
    :ivar vfio_pci_loaded: whether a PCI driver called vfio-pci is there to be bound to.
    :ivar nointxmask: vfio-pci's parameter of that name: True makes it treat every card as unable to mask itself. What
        counts is its value when the module was loaded (``vfio_pci_core_set_params``), not what is written there later.
    :ivar disable_idle_d3: True keeps idle vfio devices in D0.
    :ivar kvm: the loaded KVM backends (``kvm_amd``, ``kvm_intel``, …).
    :ivar kvm_device: whether there is a ``/dev/kvm``.
    """

    release: Fact[str]
    version: Fact[str]
    boot_id: Fact[str]
    command_line: Fact[str]
    vfio_pci_loaded: bool
    nointxmask: Fact[bool]
    disable_idle_d3: Fact[bool]
    kvm: tuple[str, ...]
    kvm_device: bool

    @property
    def stable(self) -> tuple[int, int, int] | None:
        """The upstream stable release that this kernel is built from, None where it does not say so.

        A distribution's ``6.8.0-45-generic`` or ``5.14.0-503.el9`` does not: its fixes cannot be told by a number.
        """
        return _stable(self.version.get(""), self.release.get(""))


@cache
def _stable(version: str, release: str) -> tuple[int, int, int] | None:
    found = re.search(_DISTRIBUTION, version) or re.fullmatch(_RELEASE, release)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3] or 0))


def _parameter(root: HostRoot, module: str, name: str) -> Fact[bool]:
    text = read_text(root.file("sys/module", module, "parameters", name), root=root)
    if text.value is not None and text.value not in _BOOLEANS:
        return Fact.unknown(text.source, f"not a boolean: {text.value[:16]!r}")
    return text.map(lambda word: _BOOLEANS[word])


def vfio_pci_loaded(root: HostRoot) -> bool:
    """Whether the vfio-pci driver is registered on the PCI bus now."""
    return os.path.isdir(root.file("sys/bus/pci/drivers/vfio-pci"))


def read_kernel(root: HostRoot) -> KernelFacts:
    """These facts, read now."""
    return KernelFacts(
        release=read_text(root.file("proc/sys/kernel/osrelease"), root=root),
        version=read_text(root.file("proc/version"), root=root),
        boot_id=read_text(root.file("proc/sys/kernel/random/boot_id"), root=root),
        command_line=read_text(root.file("proc/cmdline"), root=root),
        vfio_pci_loaded=vfio_pci_loaded(root),
        nointxmask=_parameter(root, "vfio_pci", "nointxmask"),
        disable_idle_d3=_parameter(root, "vfio_pci", "disable_idle_d3"),
        kvm=tuple(name for name in ("kvm_amd", "kvm_intel", "kvm_pvm") if os.path.isdir(root.file("sys/module", name))),
        kvm_device=os.path.exists(root.file("dev/kvm")),
    )
