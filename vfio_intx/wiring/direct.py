"""One line wired by hand: eventfds of our own making, VFIO on one end, KVM on the other, in the one safe order.

Some facts about the lifetimes of eventfd, irqfd and virqfd
-----------------------------------------------------------

An eventfd is a counter in the kernel with two sorts of holders. *Descriptors* (ours, their dups, copies in other
processes) hold its file. *Kernel users* (a KVM irqfd, VFIO's trigger) hold only the counter behind the file. When the
last descriptor closes, the file is released and everybody who waits on it is sent EPOLLHUP; the counter itself lives
on for the kernel users that kept it. Everything below follows from that (``fs/eventfd.c``, ``virt/kvm/eventfd.c``,
``drivers/vfio/virqfd.c``).

* The **irqfd** is KVM's waiter on the trigger. The last close of the trigger takes the irqfd down. VFIO goes on
  signalling the counter, and nobody listens: the next interrupt masks the line for good.
* The **virqfd** is VFIO's waiter on the resample eventfd. The last close of that takes the virqfd down without a
  word, while KVM goes on signalling the counter: again the next interrupt masks the line for good. No call fails, no
  file shows it.
* *Not* the last close does nothing at all. While a dup lives, in whatever process, ``close()`` detaches neither, and
  attaching another unmask eventfd is EBUSY.
* Both waiters drain the counter before anyone else sees it. Polling a wired eventfd shows nothing, whatever goes over
  it. A counter of 1 may be left behind by the assign itself and means nothing.
* An event that is pending when a waiter attaches is delivered, by both. So nothing is lost while the two ends are
  joined.
* The device's own descriptor owns its INTx: the last close of it disables INTx. The VM's owns its irqfds. A process
  that holds all four and dies leaves a quiet machine.

Therefore: whoever owns a line holds exactly one descriptor of each eventfd for as long as it is wired, nobody else
keeps one (a copy handed to a QEMU is QEMU's, ours is then closed), and taking a line down says so to VFIO and KVM
instead of leaving it to ``close()``.

The one order
-------------

``trigger``, ``mask``, then the listeners (``irqfd``, then ``unmask eventfd``), then ``unmask``. The line is masked
while its two ends are joined, so no interrupt meets half a chain; and the last step reopens it when everybody
listens. A device that asserts meanwhile fires at that moment, because unmasking looks at the level. Each step has its
undo, run in exact reverse. The end of the undo is INTx off, which is safe: what VFIO no longer handles cannot be left
masked.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vfio_intx.abi import eventfd, vfio
from vfio_intx.abi.call import close_all
from vfio_intx.errors import BusyError, KernelError, MissingError, RefusedError
from vfio_intx.wiring.undoable import Step, Wired, perform

__all__ = ["KvmSide", "LineEventfds", "check_eventfds", "irqfd_steps", "line_steps", "own_eventfds", "wire_irqfd"]


class KvmSide(Protocol):
    """Whoever may bind an irqfd for the VM: only the process that made it can (EIO elsewhere)."""

    def bind(self, trigger: int, resample: int) -> None:
        """A resample irqfd on the line's GSI. :raise KernelError: EBUSY, EINVAL (no full irqchip), EBADF."""

    def unbind(self, trigger: int) -> None:
        """Take it away; afterwards no interrupt of it arrives and the level is down."""


@dataclass(frozen=True, slots=True)
class LineEventfds:
    """The two descriptors of a line. ``trigger``: VFIO signals it. ``resample``: KVM signals it on the EOI."""

    trigger: int
    resample: int

    def close(self) -> None:
        """Close both. Only after the line has been taken down: see the facts above."""
        close_all(self.trigger, self.resample)


@contextmanager
def own_eventfds() -> Iterator[LineEventfds]:
    """Two fresh eventfds fit for a line, closed at the end. :raise KernelError: EMFILE and the like; none is left."""
    trigger = eventfd.create()
    try:
        resample = eventfd.create()
    except KernelError:
        close_all(trigger)
        raise
    pair = LineEventfds(trigger, resample)
    try:
        yield pair
    finally:
        pair.close()


def check_eventfds(pair: LineEventfds, *, proc: Path, bound: Collection[int] = ()) -> None:
    """Refuse descriptors that would make a line which loses interrupts, or storms.

    Two numbers may be one eventfd, which KVM would accept and re-fire for ever: so identities are compared, which the
    kernel shows as ``eventfd-id`` in fdinfo. That one is bound already cannot be read anywhere; KVM and VFIO answer
    EBUSY (for another VM's only from Linux 6.17), and the caller may know more.

    :param bound: identities that the caller knows to be wired.
    :raise RefusedError: naming the descriptor and what is wrong with it. Nothing was changed.
    :raise KernelError: EBADF or the like: the descriptor is not open.
    """
    for fd in (pair.trigger, pair.resample):
        objection = eventfd.objection(fd, proc=proc)
        if objection is not None:
            raise RefusedError(objection, hint="make it with EFD_NONBLOCK | EFD_CLOEXEC and nothing else")
    identities = [_identity(fd, proc) for fd in (pair.trigger, pair.resample)]
    if pair.trigger == pair.resample or (identities[0] is not None and identities[0] == identities[1]):
        raise RefusedError(
            f"descriptors {pair.trigger} and {pair.resample} are one eventfd",
            hint="use two: with one, every EOI would trigger the next interrupt",
        )
    for fd, identity in zip((pair.trigger, pair.resample), identities, strict=True):
        if identity in bound:
            raise BusyError(f"eventfd {fd} (id {identity}) is bound to a line already", hint="use a fresh eventfd")


def _identity(fd: int, proc: Path) -> int | None:
    info = eventfd.inspect(fd, proc=proc)
    return info.identity if info else None


def require_intx(device: vfio.Device) -> None:
    """See that the function has an INTx line to wire. :raise MissingError: if VFIO offers none."""
    if device.irq_info().count == 0:
        raise MissingError(
            f"{device.name} has no INTx that VFIO could forward",
            hint="it has no pin or IRQ, is a virtual function, or vfio-pci hides its INTx; see vfio-intx scan",
        )


def line_steps(device: vfio.Device, trigger: int, listeners: Sequence[Step]) -> tuple[Step, ...]:
    """The whole order for one line, from INTx off to running. *listeners* are what has to stand before it is opened."""
    return (
        Step(
            "trigger",
            f"VFIO signals eventfd {trigger} when {device.name} interrupts",
            do=lambda: _enable(device, trigger),
            undo=lambda: _disable(device),
        ),
        Step(
            "mask",
            f"mask {device.name} while its ends are joined",
            do=lambda: device.set_irqs(vfio.MASK),
            undo=lambda: device.set_irqs(vfio.UNMASK),
        ),
        *listeners,
        Step(
            "unmask",
            f"open {device.name}; it fires now if it asserts",
            do=lambda: device.set_irqs(vfio.UNMASK),
            undo=lambda: device.set_irqs(vfio.MASK),
        ),
    )


def irqfd_step(kvm: KvmSide, pair: LineEventfds) -> Step:
    """KVM injects on the trigger, drops the level on the EOI and signals the resample eventfd."""
    return Step(
        "irqfd",
        f"KVM injects on eventfd {pair.trigger} and signals {pair.resample} on the EOI",
        do=lambda: _bind(kvm, pair),
        undo=lambda: kvm.unbind(pair.trigger),
    )


def unmask_eventfd_step(device: vfio.Device, resample: int) -> Step:
    """VFIO unmasks in the kernel when the resample eventfd is signalled."""
    return Step(
        "unmask eventfd",
        f"VFIO unmasks {device.name} when eventfd {resample} is signalled",
        do=lambda: _attach(device, resample),
        undo=lambda: device.set_irqs(vfio.UNMASK_DETACH),
    )


def irqfd_steps(device: vfio.Device, kvm: KvmSide, pair: LineEventfds) -> tuple[Step, ...]:
    """The steps of scheme ``irqfd``: KVM and VFIO joined, nothing left for userspace to do. Pure: calls nothing."""
    return line_steps(device, pair.trigger, (irqfd_step(kvm, pair), unmask_eventfd_step(device, pair.resample)))


def wire_irqfd(device: vfio.Device, kvm: KvmSide, pair: LineEventfds, *, proc: Path) -> Wired:
    """Check everything, then wire the line in the one order. The caller unwires, then closes the eventfds.

    :raise MissingError: no INTx. :raise RefusedError: unfit eventfds. Nothing was changed.
    :raise BusyError: INTx, an eventfd or the unmask slot is taken. :raise KernelError: any other step failed.
        Every step that had been done is undone: INTx is off.
    """
    check_eventfds(pair, proc=proc)
    require_intx(device)
    return perform(irqfd_steps(device, kvm, pair))


def _enable(device: vfio.Device, trigger: int) -> None:
    try:
        device.set_irqs(vfio.trigger(trigger))
    except KernelError as error:
        if error.errno == errno.EBUSY:
            # request_irq() without IRQF_SHARED: a device that cannot mask itself needs the host line alone.
            hint = "another driver shares the host IRQ and this device cannot mask INTx itself; see vfio-intx scan"
            raise BusyError(f"the host IRQ of {device.name} is in use", hint=hint) from error
        if error.errno == errno.EINVAL:
            hint = "switch MSI off first; INTx and MSI exclude each other"
            raise RefusedError(f"{device.name} does not take INTx now: MSI or MSI-X is on", hint=hint) from error
        raise


def _disable(device: vfio.Device) -> None:
    try:
        device.set_irqs(vfio.DISABLE)
    except KernelError as error:
        if error.errno != errno.EINVAL:  # EINVAL: it is off, which is what we want
            raise


def _bind(kvm: KvmSide, pair: LineEventfds) -> None:
    try:
        kvm.bind(pair.trigger, pair.resample)
    except KernelError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(
                f"eventfd {pair.trigger} is bound to an interrupt line already, of this VM or another",
                hint="use a fresh eventfd for each line",
            ) from error
        raise


def _attach(device: vfio.Device, resample: int) -> None:
    try:
        device.set_irqs(vfio.unmask_eventfd(resample))
    except KernelError as error:
        if error.errno == errno.EBUSY:
            hint = "somebody holds a duplicate of the last one; close it, or switch INTx off and on"
            raise BusyError(f"{device.name} has an unmask eventfd attached already", hint=hint) from error
        raise
