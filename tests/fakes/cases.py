"""Real cases from the field, as hosts: what was plugged where, what the log said, and what must be found.

The numbers are those of the project's list of cases. ``python -m tests.fakes.cases`` prints the table.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.tree import FakeFunction, FakeTree
from vfio_intx.diagnose.prediction import Prediction, predict
from vfio_intx.diagnose.rules import codes
from vfio_intx.diagnose.subject import VmFacts
from vfio_intx.host.snapshot import take_snapshot
from vfio_intx.names import Bdf

CARD = "0000:08:00.0"
NEW_KERNEL = "Linux version 6.19.2-custom (x) #1 SMP"
OLD_KERNEL = "Linux version 6.1.0-13-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian 6.1.55-1"
BUSY_OLD = "vfio: Error: Failed to setup INTx fd: Device or resource busy"
BUSY_NEW = (
    "vfio 0000:08:00.0: Failed to set up TRIGGER eventfd signaling for interrupt INTX-0: "
    "VFIO_DEVICE_SET_IRQS failure: Device or resource busy"
)
INVALID = BUSY_NEW.replace("Device or resource busy", "Invalid argument")
VFIO_HANDLER = "vfio_intx_handler [vfio_pci_core]"
EHCI = FakeFunction(
    "0000:00:1a.0", device=0x1C2D, class_code=0x0C0320, driver="ehci-pci", group=9, irq=16, directories=("usb3",)
)


@dataclass(frozen=True)
class Case:
    """One case: how to build its host, what is known of its VM, and the codes that must be found, no more, no less."""

    number: str
    title: str
    build: Callable[[FakeTree], None]
    expected: tuple[str, ...]
    vm: VmFacts = field(default_factory=VmFacts)
    bdf: str = CARD


def _host(tree: FakeTree, *functions: FakeFunction, kernel: str = NEW_KERNEL, log: tuple[str, ...] = ()) -> None:
    tree.write("proc/version", kernel + "\n")
    tree.write("proc/sys/kernel/osrelease", kernel.split()[2] + "\n")
    tree.write("dev/kmsg", "".join(f"4,{n},{1000000 * n},-;{text}\n" for n, text in enumerate(log, start=1)))
    for function in functions:
        tree.add(function)


def _card(**changes: object) -> FakeFunction:
    fields: dict[str, object] = {"bdf": CARD, "driver": "vfio-pci", "group": 20, "irq": 16, **changes}
    return FakeFunction(**fields)  # type: ignore[arg-type]


def _mismatch(flags: str, asked: str, holder_flags: str, holder: str, irq: int = 16) -> str:
    return f"genirq: Flags mismatch irq {irq}. {flags} ({asked}) vs. {holder_flags} ({holder})"


def _given_up(irq: int, *handlers: str) -> tuple[str, ...]:
    lines = [f"[<00000000e8bc5a7d>] {handler}" for handler in handlers]
    return (
        f'irq {irq}: nobody cared (try booting with the "irqpoll" option)',
        "handlers:",
        *lines,
        f"Disabling IRQ #{irq}",
    )


def openvox(tree: FakeTree) -> None:
    _host(
        tree,
        _card(vendor=0xE159, device=0x0001),
        EHCI,
        log=(_mismatch("00000000", f"vfio-intx({CARD})", "00000080", "ehci_hcd:usb3"),),
    )
    tree.interrupts({16: (900, "IO-APIC  16-fasteoi", "ehci_hcd:usb3")})


def openvox_freed(tree: FakeTree) -> None:
    _host(tree, _card(vendor=0xE159, device=0x0001))
    tree.interrupts({})


def yamaha(tree: FakeTree) -> None:
    card = _card(vendor=0x1073, device=0x000D, class_code=0x040100)
    _host(tree, card, EHCI, log=(_mismatch("00000000", f"vfio-intx({CARD})", "00000080", "ehci_hcd:usb3"),))
    tree.interrupts({16: (12, "IO-APIC  16-fasteoi", "ehci_hcd:usb3, i801_smbus")})


def connectx3(tree: FakeTree) -> None:
    _host(tree, _card(vendor=0x15B3, device=0x1003, msix=True), EHCI)
    tree.interrupts({16: (900, "IO-APIC  16-fasteoi", "ehci_hcd:usb3")})


def two_connectx3_pro(tree: FakeTree) -> None:
    twin = _card(bdf="0000:09:00.0", vendor=0x15B3, device=0x1007, group=21)
    _host(tree, _card(vendor=0x15B3, device=0x1007, msix=True), twin)
    tree.interrupts({16: (1, "IO-APIC  16-fasteoi", "vfio-intx(0000:09:00.0)")})


def hp_ilo(tree: FakeTree) -> None:
    ilo = FakeFunction(
        "0000:01:00.2", vendor=0x103C, device=0x3307, class_code=0x088000, driver="hpilo", group=8, irq=16
    )
    _host(tree, _card(), ilo, log=(_mismatch("00200000", f"vfio-intx({CARD})", "00200080", "hpilo"),))
    tree.interrupts({16: (3, "IO-APIC  16-fasteoi", "hpilo")})


def adaptec(tree: FakeTree) -> None:
    bridge = FakeFunction("0000:02:00.0", device=0x244E, class_code=0x060400, header_type=1, pin=0, irq=0, group=11)
    nic = FakeFunction("0000:00:19.0", device=0x1502, driver="e1000e", group=7, irq=18, net=("eth0",))
    scsi = _card(bdf="0000:03:04.0", parent="0000:02:00.0", vendor=0x9004, device=0x7861, irq=18)
    _host(tree, bridge, nic, scsi, log=(_mismatch("00000000", "vfio-intx(0000:03:04.0)", "00000080", "eth0", 18),))
    tree.interrupts({18: (5, "IO-APIC  18-fasteoi", "eth0")})


def emu20k2(tree: FakeTree) -> None:
    # The log of the day: the card had no quirk yet. Today's list has it.
    log = (*_given_up(409, VFIO_HANDLER), *_given_up(16))
    _host(tree, _card(vendor=0x1102, device=0x000B, irq=409), log=log)
    tree.interrupts({409: (100000, "IR-PCI 0-fasteoi", f"vfio-intx({CARD})")})


def plx_gpus(tree: FakeTree) -> None:
    log = _given_up(31, VFIO_HANDLER)
    port = FakeFunction(
        "0000:07:00.0",
        vendor=0x10B5,
        device=0x8747,
        class_code=0x060400,
        header_type=1,
        driver="pcieport",
        irq=31,
        group=19,
    )
    _host(tree, _card(vendor=0x10DE, device=0x1E07, irq=31), port, log=log)
    tree.interrupts({31: (100000, "IO-APIC  31-fasteoi", f"vfio-intx({CARD}), pcie-dpc")})


def igb_einval(tree: FakeTree) -> None:
    _host(tree, _card(device=0x10C9, msix=True))


def plain(tree: FakeTree) -> None:
    _host(tree, _card())
    tree.interrupts({16: (5, "IO-APIC  16-fasteoi", f"vfio-intx({CARD})")})


def oneshot_guest(tree: FakeTree) -> None:
    _host(tree, _card(), kernel="Linux version 6.1.0-40-amd64 (x) #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2")


def legacy_stall(tree: FakeTree) -> None:
    _host(tree, _card(), kernel="Linux version 6.12.40+deb13-amd64 (x) #1 SMP PREEMPT_DYNAMIC Debian 6.12.40-1")
    tree.module("vfio_pci", nointxmask="Y")
    tree.interrupts({16: (1, "IO-APIC  16-fasteoi", f"vfio-intx({CARD})")})


def radeon(tree: FakeTree) -> None:
    _host(tree, _card(vendor=0x1002, device=0x6779, class_code=0x030000, driver="radeon", msi=True))


def asleep(tree: FakeTree) -> None:
    _host(tree, _card(power="D3cold"))


def pin_255(tree: FakeTree) -> None:
    _host(tree, _card(pin=255))


def dead(tree: FakeTree) -> None:
    _host(tree, _card(dead=True, power="unknown"))


def dvb_off_msi(tree: FakeTree) -> None:
    _host(tree, _card(vendor=0x544D, device=0x6178, msi=True), EHCI)
    tree.interrupts({16: (900, "IO-APIC  16-fasteoi", f"ehci_hcd:usb3, vfio-intx({CARD})")})


def tbs_dma(tree: FakeTree) -> None:
    log = ("DMAR: [DMA Read NO_PASID] Request device [08:00.0] fault addr 0xfee0000 [fault reason 0x06] PTE Read",)
    _host(tree, _card(vendor=0x14F1, device=0x8852), log=log)
    tree.interrupts({16: (12345, "IO-APIC  16-fasteoi", f"vfio-intx({CARD})")})


def windows_audio(tree: FakeTree) -> None:
    _host(tree, _card(vendor=0x10DE, device=0x0FBB, class_code=0x040300, msi=True))


def ax99100(tree: FakeTree) -> None:
    _host(tree, _card(vendor=0x125B, device=0x9100, class_code=0x070002, irq=0))


def shared_over_guests(tree: FakeTree) -> None:
    twin = _card(bdf="0000:09:00.0", group=21)
    _host(tree, _card(), twin)
    tree.module("vfio_pci", nointxmask="Y")
    tree.interrupts({})


def qubes_usb(tree: FakeTree) -> None:
    log = _given_up(16, "usb_hcd_irq", VFIO_HANDLER)
    _host(tree, _card(), EHCI, log=log)
    tree.interrupts({16: (100000, "IO-APIC  16-fasteoi", f"ehci_hcd:usb3, vfio-intx({CARD})")})


def x710(tree: FakeTree) -> None:
    _host(tree, _card(device=0x1572, msix=True), log=(f"vfio-pci {CARD}: Masking broken INTx support",))


def old_kernel(tree: FakeTree) -> None:
    _host(tree, _card(), kernel=OLD_KERNEL)


CASES = (
    Case(
        "1",
        "OpenVox FXO without DisINTx beside ehci",
        openvox,
        ("INTX001", "INTX002", "INTX003"),
        VmFacts(messages=(BUSY_OLD,)),
    ),
    Case("1+", "the same after the USB controller moved", openvox_freed, ()),
    Case("2", "flags mismatch with nested parentheses", openvox, ("INTX001", "INTX002")),
    Case(
        "3",
        "Yamaha YMF724, the newer wording",
        yamaha,
        ("INTX001", "INTX002", "INTX003"),
        VmFacts(messages=(BUSY_NEW,)),
    ),
    Case("4", "ConnectX-3 on the kernel's list, beside ehci", connectx3, ("INTX001", "INTX016")),
    Case("5", "two ConnectX-3 Pro on one line", two_connectx3_pro, ("INTX001", "INTX016", "INTX019")),
    Case("6", "HP iLO, flags of a newer kernel", hp_ilo, ("INTX001", "INTX002")),
    Case("7", "Adaptec behind a bridge, on the NIC's line", adaptec, ("INTX001", "INTX002"), bdf="0000:03:04.0"),
    Case("8", "EMU20k2: two lines given up", emu20k2, ("INTX005", "INTX007")),
    Case("9", "GPU behind a switch: only vfio's handler", plx_gpus, ("INTX005", "INTX006", "INTX007")),
    Case("10", "igb: stale MSI-X index in QEMU", igb_einval, ("INTX004", "INTX016"), VmFacts(messages=(INVALID,))),
    Case("11", "q35-4.0: split irqchip by default", plain, ("INTX009",), VmFacts(irqchip="split")),
    Case(
        "12", "split irqchip, resamplefd to be kicked", plain, ("INTX009",), VmFacts(irqchip="split", no_kvm_intx=False)
    ),
    Case("13", "guest with a oneshot handler, kernel 6.1", oneshot_guest, ("INTX011",)),
    Case("14", "card that cannot mask itself, kernel 6.12.40", legacy_stall, ("INTX008",)),
    Case("15", "guest set the pin to edge", plain, ("INTX012",), VmFacts(guest_trigger="edge")),
    Case("17", "radeon must not be unbound hot", radeon, ("INTX015", "INTX016")),
    Case("18", "a card in D3cold is not woken", asleep, ("INTX023",)),
    Case("19a", "pin 255 from the firmware", pin_255, ("INTX013",)),
    Case("19b", "pin 255 because nobody answers", dead, ("INTX013",)),
    Case("20", "DVB card with MSI switched off", dvb_off_msi, ("INTX016",), VmFacts(guest_uses="intx")),
    Case("21", "TBS card: DMA refused, INTx is fine", tbs_dma, ("INTX020",)),
    Case("22", "Windows audio stays on INTx", windows_audio, ("INTX016",), VmFacts(guest_uses="intx")),
    Case("23", "AX99100: pin A routed to IRQ 0", ax99100, ("INTX014",)),
    Case("24", "one exclusive line for two guests", shared_over_guests, ("INTX019",)),
    Case("25", "USB goes down with the line", qubes_usb, ("INTX005", "INTX007")),
    Case("26", "X710: INTx hidden", x710, ("INTX016", "INTX017")),
    Case("27", "kernel without the hardening of 2024", old_kernel, ("INTX011", "INTX018")),
    Case("28", "x-no-kvm-intx=on without need", plain, ("INTX010",), VmFacts(no_kvm_intx=True)),
    Case("none", "nothing is wrong", plain, ()),
)


def look(case: Case, path: Path) -> Prediction:
    """Build a case's host and predict for its card."""
    tree = FakeTree(path)
    case.build(tree)
    snapshot = take_snapshot(tree.root)
    return predict(snapshot.function(Bdf.parse(case.bdf)), snapshot, case.vm)


def main() -> int:
    """Print the table; 1 if any case is not as expected."""
    wrong = 0
    print(f"{'case':<5} {'expected':<26} {'seen':<26} what")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            seen = codes(look(case, Path(folder)).findings)
        mark = "" if seen == case.expected else "   <-- differs"
        wrong += bool(mark)
        print(f"{case.number:<5} {' '.join(case.expected) or '-':<26} {' '.join(seen) or '-':<26} {case.title}{mark}")
    return 1 if wrong else 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # it is made to be piped into head
    sys.exit(main())
