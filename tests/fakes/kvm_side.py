"""The KVM end of a line without KVM: it keeps the rules of ``KVM_IRQFD`` that wiring depends on."""

from __future__ import annotations

import errno

from tests.fakes.vfio_device import PROC
from vfio_intx.abi import eventfd
from vfio_intx.errors import KernelError


class FakeKvmSide:
    """One GSI. A test plays the guest: :meth:`interrupts` drains what VFIO triggered, :meth:`eoi` acknowledges."""

    def __init__(self) -> None:
        self.failures: list[int] = []
        self.bound: dict[int, int] = {}
        self.calls: list[str] = []

    def bind(self, trigger: int, resample: int) -> None:
        self.calls.append("bind")
        if self.failures:
            raise KernelError("KVM_IRQFD", "GSI 10", self.failures.pop(0))
        if any(_identity(trigger) == _identity(other) for other in self.bound):
            raise KernelError("KVM_IRQFD", "GSI 10", errno.EBUSY)
        self.bound[trigger] = resample

    def unbind(self, trigger: int) -> None:
        self.calls.append("unbind")
        self.bound.pop(trigger, None)  # never assigned: 0 all the same

    def interrupts(self) -> int:
        return sum(eventfd.drain(trigger) for trigger in self.bound)

    def eoi(self) -> None:
        for resample in self.bound.values():
            eventfd.signal(resample)


def _identity(fd: int) -> int | None:
    info = eventfd.inspect(fd, proc=PROC)
    assert info is not None
    return info.identity
