"""One card's live line under load, in L1: what the scenarios of the patched QEMU share beyond a guest that pings.

A line is watched by witnesses that share no code: the host's ``/proc/interrupts``, two tracepoints of the host's kernel
counted by the kernel itself, the guest's ``/proc/interrupts``, and QEMU's own counters.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vfio_intx.deadline import Deadline
from vfio_intx.errors import UsageError, VerifyError
from vfio_intx.host.irq import read_interrupts, vfio_action
from vfio_intx.host.root import HostRoot
from vfio_intx.lab.guests import Guest
from vfio_intx.lab.passthrough import is_held
from vfio_intx.lab.spec import Card, UserNetwork
from vfio_intx.lab.tracecount import TraceCount
from vfio_intx.names import Bdf
from vfio_intx.qemu import replies
from vfio_intx.qemu.intx_state import IntxState
from vfio_intx.qemu.transports import connect
from vfio_intx.wiring.tap import open_tap

NETWORK = UserNetwork()
NIC = Card("e1000", 0x10, backend=NETWORK)
#: QEMU's name of the card in every guest of these scenarios.
DEVICE_ID = "nic"
PATH = f"/machine/peripheral/{DEVICE_ID}"

STREAMS = 2
#: A line that carries nothing for so long, with pings under way, is stuck.
STUCK_S = 30.0
_QUIET_S = 120.0

_TRACED = {"irq/irq_handler_entry": "irq,name", "kvm/kvm_ack_irq": "irqchip,pin"}


def base_and_number(words: Iterable[str], default: int) -> tuple[tuple[str, ...], int]:
    """The QEMU base and a number among the words after ``--``, in any order. :raise UsageError: for two numbers."""
    words = tuple(words)
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(numbers) > 1 or 0 in numbers:
        raise UsageError("the words are the QEMU base and one number above 0")
    return tuple(word for word in words if not word.isdecimal()), numbers[0] if numbers else default


def intx_state(guest: Guest) -> IntxState:
    """QEMU's account of the line, asked for on the lab's own monitor."""
    reply = guest.execute("qom-get", path=PATH, property="x-intx-state")
    return replies.parse(reply, IntxState, "qom-get", "the lab's monitor")


class HostCount:
    """Interrupts on the host's line of a card: one small read each time, cheap beside a guest that needs the CPU.

    :raise VerifyError: vfio handles no INTx of the card.
    """

    def __init__(self, card: Bdf) -> None:
        wanted = vfio_action(card)
        rows = (read_interrupts(HostRoot()).value or {}).values()
        irq = next((row.irq for row in rows if wanted in row.actions), None)
        if irq is None:
            raise VerifyError(f"vfio has no INTx handler for {card}")
        self.card = card
        self._fd = os.open(Path(f"/sys/kernel/irq/{irq}/per_cpu_count"), os.O_RDONLY | os.O_CLOEXEC)

    def now(self) -> int:
        """Interrupts since boot, over all CPUs."""
        return sum(map(int, os.pread(self._fd, 4096, 0).split(b",")))

    def moves(self, seen: int, seconds: float = STUCK_S) -> bool:
        """Wait for one beyond *seen*; False where the line stands still for so long."""
        return Deadline.after("an interrupt on the line", seconds).poll(lambda: self.now() > seen, first_s=0.0002)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> HostCount:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Counts:
    """What each witness counted.

    :ivar host: runs of VFIO's handler, by ``/proc/interrupts``; ``traced`` by the tracepoint ``irq_handler_entry``.
    :ivar acks: ends of interrupts that KVM heard of, by the tracepoint ``kvm_ack_irq``.
    :ivar guest: interrupts that the guest's driver was called for.
    :ivar qemu: interrupts that QEMU injected itself, and ``qemu_eois`` those whose end it passed on.
    """

    host: int
    traced: int
    acks: int
    guest: int
    qemu: int
    qemu_eois: int

    def since(self, before: Counts) -> Counts:
        """The difference, field by field."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(before), strict=True)
        return Counts(*(now - then for now, then in pairs))

    def as_json(self) -> dict[str, int]:
        """By name."""
        return dataclasses.asdict(self)


class Witnesses:
    """All counts of one line while the context is open. They are read in turn: the line has to be quiet for that."""

    def __init__(self, guest: Guest, card: Bdf, handler: str) -> None:
        self._guest, self._card, self._handler = guest, card, handler
        self._stack = ExitStack()

    def __enter__(self) -> Witnesses:
        with ExitStack() as stack:
            self._host = stack.enter_context(HostCount(self._card))
            self._trace = stack.enter_context(TraceCount("vfio-intx-lab-line", _TRACED))
            self._stack = stack.pop_all()
        return self

    def read(self) -> Counts:
        """The counts so far, once nothing came while the guest was asked. :raise VerifyError: the line is never quiet.

        An idle e1000 interrupts every two seconds (its driver's watchdog asks for it), and on a loaded machine asking
        the guest may take as long.
        """
        quiet = Deadline.after("a quiet line", _QUIET_S)
        while True:
            before = self._outside()
            guest = self._guest.interrupt_count(self._handler)
            after = self._outside()
            if before == after:
                return dataclasses.replace(after, guest=guest)
            if quiet.passed():
                raise VerifyError(f"without traffic the line still interrupts: {before}, then {after}")

    def _outside(self) -> Counts:
        """All but the guest's."""
        Deadline.after("the last interrupt", STUCK_S).poll(lambda: not is_held(self._card))
        state = intx_state(self._guest)
        return Counts(
            host=self._host.now(),
            traced=self._trace.total("irq/irq_handler_entry", name=vfio_action(self._card)),
            acks=self._trace.total("kvm/kvm_ack_irq", pin=str(state.gsi)),
            guest=0,
            qemu=state.interrupts,
            qemu_eois=state.eois,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def fork_tap(guest: Guest, card: Bdf) -> int:
    """What ``vfio-intx tap`` does, in a child of ours that says nothing and ends when it is killed; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with connect(guest.qmp) as monitor, open_tap(monitor, card, HostRoot()) as tap:
            tap.serve(None)
        status = 0
    finally:
        # The lab's files, sockets and clean-up belong to the parent.
        os._exit(status)
