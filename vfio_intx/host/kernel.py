"""The kernel itself: release, command line, and what its vfio and kvm modules were told."""

from __future__ import annotations

from dataclasses import dataclass

from vfio_intx.chain.fact import Fact
from vfio_intx.host.root import HostRoot, read_text

#: What modules print for a boolean parameter (``param_get_bool`` in kernel/params.c).
_BOOLEANS = {"Y": True, "N": False, "1": True, "0": False}


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What this machine's kernel says of itself.

    :ivar vfio_pci_loaded: whether a PCI driver called vfio-pci is there to be bound to.
    :ivar nointxmask: vfio-pci's parameter of that name: True makes it treat every card as unable to mask itself. It is
        latched for a device when that is bound, so a later change does not show here.
    :ivar disable_idle_d3: True keeps idle vfio devices in D0.
    :ivar kvm: the loaded KVM backends (``kvm_amd``, ``kvm_intel``, …).
    """

    release: Fact[str]
    boot_id: Fact[str]
    command_line: Fact[str]
    vfio_pci_loaded: bool
    nointxmask: Fact[bool]
    disable_idle_d3: Fact[bool]
    kvm: tuple[str, ...]


def _parameter(root: HostRoot, module: str, name: str) -> Fact[bool]:
    text = read_text(root.at("sys/module", module, "parameters", name), root=root)
    if text.value is not None and text.value not in _BOOLEANS:
        return Fact.unknown(text.source, f"not a boolean: {text.value[:16]!r}")
    return text.map(lambda word: _BOOLEANS[word])


def vfio_pci_loaded(root: HostRoot) -> bool:
    """Whether the vfio-pci driver is registered on the PCI bus now."""
    return root.pci_driver("vfio-pci").is_dir()


def read_kernel(root: HostRoot) -> KernelFacts:
    """These facts, read now."""
    return KernelFacts(
        release=read_text(root.at("proc/sys/kernel/osrelease"), root=root),
        boot_id=read_text(root.at("proc/sys/kernel/random/boot_id"), root=root),
        command_line=read_text(root.at("proc/cmdline"), root=root),
        vfio_pci_loaded=vfio_pci_loaded(root),
        nointxmask=_parameter(root, "vfio_pci", "nointxmask"),
        disable_idle_d3=_parameter(root, "vfio_pci", "disable_idle_d3"),
        kvm=tuple(name for name in ("kvm_amd", "kvm_intel", "kvm_pvm") if root.at("sys/module", name).is_dir()),
    )
