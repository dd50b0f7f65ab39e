"""The defects of stock QEMU that our series mends, each as an experiment on one QEMU program, for use inside L1.

An experiment says what it saw and whether the defect showed; the scenarios under ``scenarios/qemu`` run it on the
stock build and on the patched one, and want it to show on the first and not on the second. The letters before their
descriptions are those of the scenarios (``qemu/defect-a``), by which ``docs/qemu-patches.md`` lists them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.abi.pidfd import borrow, open_process
from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, VerifyError
from vfio_intx.lab.guests import Guest, GuestOptions
from vfio_intx.lab.passthrough import Pings, give_to_vfio, host_count, is_held, ping, qemu_for
from vfio_intx.lab.scenario import Context
from vfio_intx.lab.spec import Card, UserNetwork
from vfio_intx.names import Bdf

FIRST_NETWORK = UserNetwork(2)
SECOND_NETWORK = UserNetwork(3)
FIRST = Card("e1000", 0x10, backend=FIRST_NETWORK)
SECOND = Card("e1000", 0x11, backend=SECOND_NETWORK)

#: PIIX3's PIRQ routing registers; bit 7 routes the pin to nothing (Intel 290550, 2.2.8).
_PIRQ_BRIDGE = "/sys/bus/pci/devices/0000:00:01.0/config"
_PIRQ_A = 0x60
_PIRQ_OFF = 0x80
#: ICH9's chip configuration space, and in it D26IR, the pins of slot 26 (Intel 316972, 10.1).
_RCBA = 0xFED1C000
_D26IR = 0x314C
_D26_SLOT = 0x1A

#: GSIs of a pc guest's PCI lines: 10 and 11 for the PIRQs (pci_irqs in SeaBIOS, src/fw/pciinit.c), and ACPI's SCI.
_PCI_GSIS = (9, 10, 11)

_PINGS = 20


@dataclass(frozen=True, slots=True)
class Seen:
    """What an experiment saw, and whether that is the defect."""

    defect: bool
    facts: dict[str, object]


Experiment = Callable[[Context, str], Seen]


def before_and_after(context: Context, experiment: Experiment, cards: Sequence[Card]) -> dict[str, object]:
    """Run *experiment* on both builds. :raise VerifyError: unless the defect shows on stock QEMU and only there."""
    give_to_vfio(*(context.bdf(card) for card in cards))
    stock = experiment(context, qemu_for(context.options, stock=True))
    context.say(f"stock QEMU: {'the defect shows' if stock.defect else 'no defect'}: {stock.facts}")
    patched = experiment(context, qemu_for(context.options))
    context.say(f"patched QEMU: {'the defect shows' if patched.defect else 'no defect'}: {patched.facts}")
    if not stock.defect:
        raise VerifyError(f"the defect did not show on stock QEMU: {stock.facts}")
    if patched.defect:
        raise VerifyError(f"the defect shows on the patched QEMU: {patched.facts}")
    return {"schema": "vfio-intx/lab-defect/1", "stock": stock.facts, "patched": patched.facts}


def shared_gsi(context: Context, qemu: str) -> Seen:
    """(a) Split irqchip, two cards on one GSI: does each go on after its own interrupts?"""
    cards = (context.bdf(FIRST), context.bdf(SECOND))
    devices = [f"vfio-pci,host={card},id=card{number},addr={4 + 4 * number:#x}" for number, card in enumerate(cards)]
    options = GuestOptions(irqchip="split", qemu=qemu, extra=tuple(w for d in devices for w in ("-device", d)))
    with Guest.start(options) as guest:
        guest.load("e1000")
        _name_and_set_up(guest, "0000:00:04.0", FIRST_NETWORK)
        _name_and_set_up(guest, "0000:00:08.0", SECOND_NETWORK)
        gsis = {line.irq for line in guest.interrupts().values() if "eth" in line.rest}
        alone = [_ping_alone(guest, *pair) for pair in zip(cards, (FIRST_NETWORK, SECOND_NETWORK), strict=True)]
        held = [is_held(card) for card in cards]
    facts: dict[str, object] = {
        "guest_irqs": sorted(gsis),
        "received": [pings.received for pings, _ in alone],
        "slowest_ms": [pings.slowest_ms for pings, _ in alone],
        "held": held,
        "host_interrupts": [count for _, count in alone],
    }
    if len(gsis) != 1:
        raise VerifyError(f"the two cards do not share a line in the guest: {facts}")
    # A card that is dead still answers, late: whatever interrupts the other one has the guest run both handlers.
    return Seen(any(count < _PINGS // 4 for _, count in alone), facts)


def _name_and_set_up(guest: Guest, address: str, network: UserNetwork) -> None:
    guest.check(f"for i in $(seq 100); do [ -d /sys/bus/pci/devices/{address}/net ] && break; sleep 0.05; done")
    name = guest.check(f"ls /sys/bus/pci/devices/{address}/net").strip()
    guest.check(f"ip addr add {network.address} dev {name} && ip link set {name} up")


def _ping_alone(guest: Guest, card: Bdf, network: UserNetwork) -> tuple[Pings, int]:
    """Ping through one card while the other is silent: the answers, and the interrupts that the host counted for it.

    Pinging both at once hides the defect: each card's interrupt has the guest run both handlers.
    """
    before = host_count(card)
    return ping(guest, network, _PINGS, 8), host_count(card) - before


def masked_pin(context: Context, qemu: str) -> Seen:
    """(b) Split irqchip, a guest that masks its pin until a thread has run: how many interrupts for one ping?"""
    card = context.bdf(FIRST)
    options = GuestOptions(irqchip="split", qemu=qemu, kernel_arguments=("pci=nomsi", "threadirqs"))
    with _plugged(options, card) as guest:
        before = host_count(card), guest.interrupt_count("eth0"), _deliveries(guest)
        pings = ping(guest, FIRST_NETWORK, _PINGS)
        after = host_count(card), guest.interrupt_count("eth0"), _deliveries(guest)
    facts: dict[str, object] = {
        "received": pings.received,
        "host_interrupts": after[0] - before[0],
        "guest_interrupts": after[1] - before[1],
        "lapic_interrupts": after[2] - before[2],
    }
    return Seen(after[1] - before[1] > 2 * (after[0] - before[0]) + 20, facts)


def _deliveries(guest: Guest) -> int:
    return sum(line.count for line in guest.interrupts().values())


def stale_route(context: Context, qemu: str) -> Seen:
    """(c) q35, slot 26: the guest rewrites its pins' routes; when does vfio-pci hear of it?"""
    card = context.bdf(FIRST)
    device = ("-device", f"vfio-pci,host={card},id=nic,addr={_D26_SLOT:#x}", "-trace", "vfio_intx_update")
    options = GuestOptions(machine="q35", qemu=qemu, kernel_arguments=("pci=nomsi", "iomem=relaxed"), extra=device)
    with Guest.start(options) as guest:
        guest.load("e1000")
        register = f"{_RCBA + _D26IR:#x} 16"
        old = int(guest.check(f"devmem {register}"), 16)
        begun = len(_moves(guest))
        # Pin A is the lowest digit; PIRQA to PIRQH are 0 to 7.
        guest.check(f"devmem {register} {old ^ 0x4:#x}")
        after_first = _moves(guest)[begun:]
        guest.check(f"devmem {register} {old ^ 0x4:#x}")
        after_second = _moves(guest)[begun:]
    facts: dict[str, object] = {"register": f"{old:#06x}", "at_the_write": after_first, "after_another": after_second}
    return Seen(not after_first, facts)


def _moves(guest: Guest) -> list[str]:
    """The route changes that QEMU's vfio-pci has heard of so far, from its trace."""
    # A question to QEMU first: its log is complete up to the answer.
    guest.execute("query-status")
    text = (guest.folder / "stderr").read_text("utf-8", "replace")
    return [found[1] for found in re.finditer(r"vfio_intx_update.*IRQ moved (-?\d+ -> -?\d+)", text)]


def mmaps_left_off(context: Context, qemu: str) -> Seen:
    """(d) An interrupt without a route, then a route again: do register accesses still go through QEMU?"""
    card = context.bdf(FIRST)
    options = GuestOptions(qemu=qemu, extra=("-trace", "vfio_region_read"))
    with _plugged(options, card, **{"x-intx-mmap-timeout-ms": 0}) as guest:
        ping(guest, FIRST_NETWORK, 5)
        with _unrouted(guest):
            ping(guest, FIRST_NETWORK, 2, 2)
        ping(guest, FIRST_NETWORK, 5)
        begun = _reads(guest)
        pings = ping(guest, FIRST_NETWORK, _PINGS)
        trapped = _reads(guest) - begun
    return Seen(trapped > 0, {"received": pings.received, "trapped_reads": trapped})


def _reads(guest: Guest) -> int:
    guest.execute("query-status")
    return (guest.folder / "stderr").read_text("utf-8", "replace").count("vfio_region_read")


@contextlib.contextmanager
def _unrouted(guest: Guest) -> Iterator[None]:
    """Route all four PIRQs to nothing for as long as the block lasts."""
    old = guest.check(f"dd if={_PIRQ_BRIDGE} bs=1 skip={_PIRQ_A} count=4 2>/dev/null | od -An -tu1").split()
    _write_pirqs(guest, [_PIRQ_OFF] * 4)
    try:
        yield
    finally:
        _write_pirqs(guest, [int(word) for word in old])


def _write_pirqs(guest: Guest, values: Sequence[int]) -> None:
    for number, value in enumerate(values):
        write = f"dd of={_PIRQ_BRIDGE} bs=1 seek={_PIRQ_A + number} conv=notrunc"
        guest.check(f"printf '\\{value:03o}' | {write} 2>/dev/null")


def held_eventfd(context: Context, qemu: str) -> Seen:
    """(detach) Another process holds copies of QEMU's eventfds while the guest changes its routing."""
    card = context.bdf(FIRST)
    with _plugged(GuestOptions(qemu=qemu), card) as guest:
        ping(guest, FIRST_NETWORK, 5)
        with contextlib.ExitStack() as copies:
            pidfd = copies.enter_context(open_process(guest.pid))
            held = 0
            for fd in _eventfds(guest.pid):
                with contextlib.suppress(KernelError):
                    copies.enter_context(borrow(pidfd, fd, "QEMU"))
                    held += 1
            with _unrouted(guest):
                guest.execute("query-status")
            begun = _raised_by_qemu(guest)
            pings = ping(guest, FIRST_NETWORK, _PINGS)
            raised = _raised_by_qemu(guest) - begun
        complaint = [line for line in guest.last_words() if "UNMASK" in line]
    return Seen(raised > 0, {"copies": held, "received": pings.received, "by_qemu": raised, "qemu_says": complaint})


def _eventfds(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(path.readlink()) == "anon_inode:[eventfd]":
                found.append(int(path.name))
    return found


def _raised_by_qemu(guest: Guest) -> int:
    """Interrupts on PCI lines that QEMU raised itself, of all devices; the guest's ISA ones are left out."""
    counts = re.findall(r"^(\d+): (\d+)$", guest.human("info irq").replace("\r", ""), re.M)
    return sum(int(count) for irq, count in counts if int(irq) in _PCI_GSIS)


@contextlib.contextmanager
def _plugged(options: GuestOptions, card: Bdf, **properties: object) -> Iterator[Guest]:
    """A guest with *card* hot-plugged, its network up and one ping answered."""
    with Guest.start(options) as guest:
        guest.execute("device_add", driver="vfio-pci", host=str(card), id="nic", **properties)
        guest.load("e1000")
        name = guest.wait_interface()
        guest.check(f"ip addr add {FIRST_NETWORK.address} dev {name} && ip link set {name} up")
        ready = Deadline.after("the first answer", 20)
        if not ready.poll(lambda: ping(guest, FIRST_NETWORK, 1, 2).received > 0):
            raise VerifyError("the card is in the guest, but no ping is answered")
        yield guest
