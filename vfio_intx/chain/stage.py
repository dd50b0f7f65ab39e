"""The eleven stages of a level INTx interrupt, in the order it passes them."""

from __future__ import annotations

from enum import Enum


class Stage(Enum):
    """One link of the chain. A finding, a trace span and a metric name the same link by the same word (``value``)."""

    DEVICE = "device"
    HOST_IRQ = "host-irq"
    HOST_MASK = "host-mask"
    TRIGGER = "trigger"
    INJECT = "inject"
    ROUTE = "route"
    DELIVER = "deliver"
    HANDLE = "handle"
    EOI = "eoi"
    RESAMPLE = "resample"
    UNMASK = "unmask"

    @property
    def number(self) -> int:
        """Its place in the chain, 1 to 11."""
        return list(Stage).index(self) + 1

    @property
    def demand(self) -> str:
        """What has to be true for the chain to hold at this link."""
        return _DEMANDS[self]


_DEMANDS = {
    Stage.DEVICE: "the device asserts INTx",
    Stage.HOST_IRQ: "the host line is enabled and the vfio handler ran",
    Stage.HOST_MASK: "vfio masked the line before anybody else heard of it",
    Stage.TRIGGER: "the trigger eventfd was signalled",
    Stage.INJECT: "the level was raised on the guest's GSI",
    Stage.ROUTE: "the guest's IOAPIC or PIC pin is unmasked, level, with the right vector",
    Stage.DELIVER: "a running vCPU took the vector",
    Stage.HANDLE: "the guest's handler ran and quieted the device",
    Stage.EOI: "the EOI reached the irqchip",
    Stage.RESAMPLE: "the level was dropped and the resample eventfd signalled",
    Stage.UNMASK: "vfio unmasked the host line",
}
