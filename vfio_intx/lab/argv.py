"""From a lab's description to command lines: pure, so that a test can read what would be run.

virtme-ng boots an image with the machine's own file system as a read-only root under a memory overlay.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.lab.autopsy import monitor_arguments
from vfio_intx.lab.nudge import nudge_arguments
from vfio_intx.lab.spec import Card, FrameSocket, LabSpec, SerialSocket, UserNetwork, socket_path
from vfio_intx.lab.start import MACHINE_TAG

#: Card models that have a romfile property: with it empty, no option ROM is looked for.
_NO_ROM_PROPERTY = frozenset({"pci-bridge", "i82801b11-bridge", "pcie-pci-bridge", "pcie-root-port", "ioh3420"})

#: L1's chipset: TCG has no in-kernel irqchip, and the emulated IOMMU remaps interrupts only without one.
_MACHINE = ("-machine", "q35,kernel-irqchip=off", "-cpu", "EPYC,+svm,+npt", "-device", "intel-iommu,intremap=on")

_SECOND_ROOT = (
    *("-fsdev", "local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap"),
    *("-device", f"virtio-9p-pci,fsdev=machine,mount_tag={MACHINE_TAG}"),
)

#: An oops must not leave a half-dead L1 behind: it becomes a panic, and virtme-ng's panic=-1 turns that into an exit.
#: no_timer_check: on a loaded machine the emulated timer can be late enough for the kernel to give it up and panic.
_KERNEL = (
    "intel_iommu=on",
    "mitigations=off",
    "oops=panic",
    "tsc=nowatchdog",
    "random.trust_cpu=on",
    "no_timer_check",
)


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie, on the machine and, under the same paths, in L1. ``qemu`` is None for the machine's own."""

    vng: Path
    image: Path
    results_dir: Path
    qemu: Path | None = None


def vng_argv(spec: LabSpec, places: Places, script: Path, *, interactive: bool = False) -> list[str]:
    """The command that boots *spec* and runs *script*, as a login shell on the terminal if *interactive*."""
    qemu = [
        *_MACHINE,
        *_SECOND_ROOT,
        *monitor_arguments(places.results_dir),
        *nudge_arguments(places.results_dir),
        *(word for card in spec.cards for word in card_arguments(card, places.results_dir)),
    ]
    argv = [str(places.vng), "--verbose", "--run", str(places.image), "--disable-kvm", "--force-9p"]
    argv += ["--cpus", str(spec.cpus), "--memory", f"{spec.memory_mib}M", "--user", "root", "--cwd", "/"]
    argv += [f"--rwdir={places.results_dir}"]
    argv += [] if places.qemu is None else ["--qemu", str(places.qemu)]
    argv += ["--shell" if interactive else "--exec", str(script)]
    argv += [f"--qemu-opts={shlex.join(qemu)}"]
    for word in (*_KERNEL, *spec.kernel_arguments):
        argv += ["--append", word]
    return argv


def card_arguments(card: Card, results_dir: Path) -> list[str]:
    """QEMU's words for one card and its backend."""
    device = [card.model, f"id={card.name}", f"addr={card.slot:#x}", *card.options]
    if card.bus is not None:
        device.append(f"bus={card.bus}")
    backend: Sequence[str] = ()
    match card.backend:
        case UserNetwork(number):
            backend = ("-netdev", f"user,id=net-{card.name},net=10.0.{number}.0/24,restrict=on")
            device.append(f"netdev=net-{card.name}")
        case FrameSocket(name):
            path = socket_path(results_dir, name)
            backend = ("-netdev", f"stream,id=net-{card.name},server=on,addr.type=unix,addr.path={path}")
            device.append(f"netdev=net-{card.name}")
        case SerialSocket(name):
            path = socket_path(results_dir, name)
            backend = ("-chardev", f"socket,id=line-{card.name},path={path},server=on,wait=off")
            device.append(f"chardev=line-{card.name}")
        case None:
            pass
    if card.model not in _NO_ROM_PROPERTY:
        device.append("romfile=")
    return [*backend, "-device", ",".join(device)]
