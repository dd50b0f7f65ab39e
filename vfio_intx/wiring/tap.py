"""This process in the EOI path of a live line: KVM tells us of each EOI, we count it and unmask the device.

It is the userspace EOI of old, for comparison, and a tap that counts exactly. It needs a QEMU with our series and a
copy of QEMU's vfio descriptor, which is kept for as long as we are in the path, on purpose: it is what we unmask with.

The leash is a pipe and works both ways. When we die, its writing end closes, and QEMU unmasks and goes on with eventfds
of its own. When QEMU lets go of the line (it unplugs the device, is told otherwise, dies), its reading end closes; we
see that at once and drop our copy of the device, which would otherwise stay open.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from vfio_intx.abi import eventfd, vfio
from vfio_intx.abi.call import close_all
from vfio_intx.abi.pidfd import borrow, open_process
from vfio_intx.errors import KernelError, MissingError, WorldError
from vfio_intx.host.root import HostRoot
from vfio_intx.names import Bdf
from vfio_intx.qemu.intx_state import Eventfds, IntxState
from vfio_intx.qemu.monitor import Monitor
from vfio_intx.wiring.direct import LineEventfds
from vfio_intx.wiring.handover import hand_over, require_handover, take_back, verify
from vfio_intx.wiring.kick import find_owner, is_that, names_another

#: How often somebody who may want us to stop is asked, in seconds.
_LOOK_S = 0.5


@dataclass(slots=True)
class Tally:
    """What went through us.

    :ivar eois: EOIs that KVM told of. On a shared GSI those of its neighbours are among them.
    :ivar wakeups: how often we were woken for them; ``unmasks``: how often the kernel took our unmask.
    :ivar refused: unmasks that the kernel refused, because the guest had just switched INTx off.
    :ivar unmask_ns: how long each took from our wake-up to the kernel's answer, at most :data:`MOST_KEPT` of them.
    """

    eois: int = 0
    wakeups: int = 0
    unmasks: int = 0
    refused: int = 0
    seconds: float = 0.0
    unmask_ns: list[int] = field(default_factory=list)

    def percentile_us(self, share: float) -> float | None:
        """The unmask that *share* (0 to 1) of them were no slower than, in microseconds; None of nothing."""
        times = sorted(self.unmask_ns)
        return times[min(int(len(times) * share), len(times) - 1)] / 1000 if times else None

    def as_json(self) -> dict[str, object]:
        """For programs: the shape of ``vfio-intx/tap/1``."""
        return {
            "eois": self.eois,
            "wakeups": self.wakeups,
            "unmasks": self.unmasks,
            "refused": self.refused,
            "seconds": round(self.seconds, 6),
            "unmask_us": {"p50": self.percentile_us(0.5), "p99": self.percentile_us(0.99)},
        }

    def in_words(self) -> list[str]:
        """For people."""
        p50, p99 = self.percentile_us(0.5), self.percentile_us(0.99)
        words = [f"  {self.eois} EOIs in {self.seconds:.1f} s, {self.unmasks} unmasks, {self.refused} refused"]
        if p50 is not None and p99 is not None:
            words.append(f"  from the wake-up to the unmasked line: p50 {p50:.1f} us, p99 {p99:.1f} us")
        return words


MOST_KEPT = 100_000


def _leash() -> tuple[int, int]:
    try:
        return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KernelError("pipe2", "a leash", error.errno or 0) from error


class Tap:
    """In the path from construction to :meth:`leave`; a context manager.

    :ivar state: QEMU's account of the line just after we entered.
    """

    def __init__(
        self, monitor: Monitor, bdf: Bdf, devices: Sequence[vfio.Device], keep: ExitStack | None = None
    ) -> None:
        """Enter the path.

        :param devices: the device. Where a kernel does not tell which of QEMU's equal cards a descriptor is, all of
            them: unmasking a line that is open, or that still asserts, changes nothing.
        :param keep: holds what *devices* rest on; closed at the end, also if this raises.
        :raise WorldError: as :func:`~vfio_intx.wiring.handover.require_handover` and ``hand_over`` do; the line is as
            it was, or QEMU is putting it back, having seen the leash close.
        """
        self.tally = Tally()
        self._monitor, self._bdf, self._devices = monitor, bdf, tuple(devices)
        self._stack = keep or ExitStack()
        self._resample = self._hold = -1
        try:
            before = require_handover(monitor, bdf)
            self._enter(before)
            self.state: IntxState = verify(monitor, bdf, Eventfds.GIVEN_ACK)
        except BaseException:
            self._let_go()
            raise

    def _enter(self, before: IntxState) -> None:
        # QEMU has its copies soon; ours of these two are of no more use then and would only prolong their lives.
        with ExitStack() as given:
            trigger = eventfd.create()
            given.callback(close_all, trigger)
            self._resample = eventfd.create()
            leash, self._hold = _leash()
            given.callback(close_all, leash)
            hand_over(self._monitor, before, LineEventfds(trigger, self._resample), leash)

    def serve(self, seconds: float | None, stop: Callable[[], bool] = lambda: False) -> str:
        """Unmask after every EOI, for so long, or until *stop* says so. The monitor is not used meanwhile.

        :return: why it ended: ``time``, ``stopped``, or ``gone`` where QEMU has let go of the line.
        :raise KernelError: the device failed.
        """
        poller = select.poll()
        poller.register(self._resample, select.POLLIN)
        poller.register(self._hold, 0)  # POLLERR, which needs no asking: nobody reads at the other end any more
        began = time.monotonic()
        try:
            while True:
                for fd, _ in poller.poll(_LOOK_S * 1000):
                    if fd == self._hold:
                        return "gone"
                    self._serve_one()
                if stop():
                    return "stopped"
                if seconds is not None and time.monotonic() - began >= seconds:
                    return "time"
        finally:
            self.tally.seconds += time.monotonic() - began

    def _serve_one(self) -> None:
        tally = self.tally
        woken = time.monotonic_ns()
        tally.eois += eventfd.drain(self._resample)
        tally.wakeups += 1
        for device in self._devices:
            try:
                device.set_irqs(vfio.UNMASK)
                tally.unmasks += 1
            except KernelError as error:
                if error.errno != errno.EINVAL:
                    raise
                tally.refused += 1
        if len(tally.unmask_ns) < MOST_KEPT:
            tally.unmask_ns.append(time.monotonic_ns() - woken)

    def _is_held(self) -> bool:
        """Whether QEMU still holds the other end of the leash."""
        poller = select.poll()
        poller.register(self._hold, 0)
        return not poller.poll(0)

    def leave(self) -> None:
        """Give the path back to KVM and VFIO. Harmless when done twice.

        :raise PeerError: QEMU could not be asked; it goes back by itself, because the leash is closed.
        """
        if self._hold < 0:
            return
        try:
            if self._is_held():
                take_back(self._monitor, self.state)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Close the leash first: from there on QEMU unmasks."""
        close_all(self._hold, self._resample)
        self._hold = self._resample = -1
        self._stack.close()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.leave()
        else:
            # Something is under way already that the caller must hear of.
            with suppress(WorldError):
                self.leave()


def open_tap(monitor: Monitor, bdf: Bdf, root: HostRoot) -> Tap:
    """Enter the EOI path of *bdf* in the VM behind *monitor*.

    :raise MissingError: no VM has it, or not this one. :raise WorldError: as :class:`Tap` does.
    :raise KernelError: EPERM without the rights to borrow QEMU's descriptor.
    """
    process, function = find_owner(root, bdf)
    if monitor.peer_pid is not None and monitor.peer_pid != process.pid:
        raise MissingError(f"{bdf} is not in the VM behind {monitor.name}, but in {process.label}")
    descriptors = process.descriptors.value
    found: list[vfio.Device] = []
    with ExitStack() as stack:
        pidfd = stack.enter_context(open_process(process.pid))
        for fd in descriptors.vfio_devices if descriptors is not None else ():
            if not names_another(root, process.pid, fd, bdf):
                copy = stack.enter_context(borrow(pidfd, fd, f"VM {process.label}"))
                device = vfio.DeviceFile(copy, str(bdf))
                found += [device] if is_that(device, function) else []
        if not found:
            raise MissingError(f"none of the vfio descriptors of VM {process.label} is {bdf}")
        return Tap(monitor, bdf, found, stack.pop_all())
