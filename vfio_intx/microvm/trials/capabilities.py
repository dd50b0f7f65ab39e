"""What KVM says of itself; and whether there is an irqchip at all, which is tried."""

from __future__ import annotations

from collections.abc import Iterator

from vfio_intx.abi import kvm
from vfio_intx.abi.kvm import Cap
from vfio_intx.microvm.machine import Irqchip, Machine
from vfio_intx.microvm.trials.row import Ground, Row, judged


def rows(ground: Ground) -> Iterator[Row]:
    """The capability rows and the full irqchip."""
    yield judged(
        "in-kernel irqchip",
        "created",
        lambda: _create(ground, Irqchip.FULL),
        good="IOAPIC, PIC and LAPIC live in the kernel, as an INTx line needs them",
        bad="no INTx line can be forwarded on this host; cards have to use MSI",
        required=True,
    )
    for cap, needed in ((Cap.IRQFD, True), (Cap.IRQFD_RESAMPLE, True)):
        yield judged(
            f"KVM_CAP_{cap.name}",
            "1",
            lambda cap=cap: _capability(ground, cap),  # type: ignore[misc]
            good="KVM says that it can; the trials below tell whether it does",
            bad="KVM says that it cannot: only the userspace schemes are left",
            required=needed,
        )
    yield judged(
        "split irqchip: KVM_CAP_IRQFD_RESAMPLE",
        "1",
        lambda: _split_capability(ground),
        good="the capability claims what a split irqchip cannot do: only a trial assign tells",
        bad="this kernel tells the truth about split irqchips",
    )


def _create(ground: Ground, irqchip: Irqchip) -> tuple[bool, str]:
    Machine(ground.kvm_fd, irqchip).close()
    return True, "created"


def _capability(ground: Ground, cap: Cap) -> tuple[bool, str]:
    answer = kvm.check_extension(ground.kvm_fd, cap)
    return answer > 0, str(answer)


def _split_capability(ground: Ground) -> tuple[bool, str]:
    with Machine(ground.kvm_fd, Irqchip.SPLIT) as machine:
        answer = kvm.check_extension(machine.fd, Cap.IRQFD_RESAMPLE)
    return answer > 0, str(answer)
