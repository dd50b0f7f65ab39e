"""Traced events written by hand: a line, threads of its VM and of a stranger, and what each scheme leaves behind."""

from __future__ import annotations

from vfio_intx.abi.tracepoints import Event
from vfio_intx.names import Gsi, HostIrq
from vfio_intx.observe.events import Kind, Target
from vfio_intx.observe.spans import Joiner

MAIN, VCPU, WORKER, OTHER = 100, 101, 7, 200
LEVEL = 1 << 15
MASKED = 1 << 16
DEVICE = Target(Gsi(20), (MAIN, VCPU), HostIrq(21), "vfio-intx(0000:00:05.0)")
BARE = Target(Gsi(20), (MAIN, VCPU))


class Script:
    """Writes events one after another, ten nanoseconds apart."""

    def __init__(self, at: int = 1000) -> None:
        self.events: list[Event] = []
        self.at = at

    def add(self, kind: int, *fields: int, cpu: int = 0) -> Script:
        self.at += 10
        self.events.append((self.at, kind, cpu, fields))
        return self

    def host(self, verdict: int = 1, *, wakes: int | None = None, cpu: int = 0) -> Script:
        self.add(Kind.HOST_ENTRY, WORKER, 21, cpu=cpu)
        if wakes is not None:
            self.add(Kind.WAKING, WORKER, wakes, cpu=cpu)
        return self.add(Kind.HOST_EXIT, WORKER, 21, verdict, cpu=cpu)

    def up(self, pid: int = WORKER, source: int = 1, vector: int = 37) -> Script:
        self.add(Kind.SET_IRQ, pid, 20, 1, source)
        return self.add(Kind.ACCEPT, pid, 0, vector)

    def eoi(self, pid: int = VCPU, vector: int = 37) -> Script:
        self.add(Kind.INJECT_VECTOR, pid, vector)
        self.add(Kind.EOI, pid, 0, vector)
        return self.add(Kind.ACK, pid, 2, 20)

    def down(self, pid: int = VCPU, source: int = 1) -> Script:
        return self.add(Kind.SET_IRQ, pid, 20, 0, source)

    def irqfd(self) -> Script:
        return self.up().eoi().down()

    def trap(self) -> Script:
        self.up(MAIN, 0).add(Kind.INJECT_VECTOR, VCPU, 37).add(Kind.USERSPACE_EXIT, VCPU, 6).down(VCPU, 0)
        return self.add(Kind.EOI, VCPU, 0, 37).add(Kind.ACK, VCPU, 2, 20)


def join(script: Script, target: Target = BARE) -> Joiner:
    joiner = Joiner(target)
    joiner.feed(script.events)
    joiner.finish()
    return joiner
