"""Wire and unwire, ten thousand times, and count what is left."""

from __future__ import annotations

from collections.abc import Iterator

from vfio_intx.abi import eventfd, kvm
from vfio_intx.abi.call import close_all
from vfio_intx.microvm.contest import GSI
from vfio_intx.microvm.guest import Pin
from vfio_intx.microvm.machine import Machine
from vfio_intx.microvm.trials.row import Ground, Row, judged

ROUNDS = 10_000


def rows(ground: Ground) -> Iterator[Row]:
    """The one row of it."""
    yield judged(
        f"{ROUNDS} times wired and unwired",
        "0 descriptors left",
        lambda: _trial(ground),
        good="a scheme can be switched as often as one likes",
        bad="every switch of a scheme costs the VMM descriptors, until it has none",
        required=True,
    )


def _trial(ground: Ground) -> tuple[bool, str]:
    gsi = GSI[Pin.IOAPIC]
    with Machine(ground.kvm_fd) as machine:
        before = ground.count_fds()
        for _ in range(ROUNDS):
            trigger, resample = eventfd.create(), eventfd.create()
            kvm.assign_irqfd(machine.fd, trigger, gsi, resample)
            kvm.deassign_irqfd(machine.fd, trigger, gsi)
            close_all(trigger, resample)
        left = ground.count_fds() - before
    return left == 0, f"{left} descriptors left"
