"""A VFIO device without a device: it obeys the errno table of ``vfio_pci_intrs.c`` on real eventfds.

What it imitates: INTx of one function (auto-masking, re-signal on unmask of an asserted line, virtual DisINTx, software
loopback), the virqfd's lifetime (an epoll registration, which the kernel drops with the last close, as it does the
virqfd), and a card with cause, set and mask registers in BAR 0. What it leaves out: MSI, DMA, mmap.
"""

from __future__ import annotations

import errno
import os
import re
import select
import struct
import threading
from collections import deque
from pathlib import Path

from vfio_intx.abi import eventfd, vfio
from vfio_intx.abi.pciconf import PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_STATUS, PCI_STATUS_INTERRUPT, ConfigSpace
from vfio_intx.errors import KernelError

PROC = Path("/proc")
#: The registers of the imitated card, the offsets of an e1000: cause (read clears), set cause, enable, disable.
ICR, ICS, IMS, IMC = 0xC0, 0xC8, 0xD0, 0xD8
BAR_SIZE = 0x20000
_STOP = -1


class FakeCard:
    """Cause and mask registers: the line is up while an enabled cause is set."""

    def __init__(self) -> None:
        self.cause = 0
        self.enabled = 0

    @property
    def asserts(self) -> bool:
        return bool(self.cause & self.enabled)

    def read(self, offset: int) -> int:
        if offset == ICR:
            value, self.cause = self.cause, 0
            return value
        return self.enabled if offset == IMS else 0

    def write(self, offset: int, value: int) -> None:
        if offset == ICS:
            self.cause |= value
        elif offset == IMS:
            self.enabled |= value
        elif offset == IMC:
            self.enabled &= ~value
        elif offset == ICR:
            self.cause &= ~value


class FakeVfioDevice:
    """See the module. Thread-safe; ``close()`` it, or use it as a context manager."""

    def __init__(self, *, pin: int = 1, can_mask: bool = True, host_irq_taken: bool = False) -> None:
        self.card = FakeCard()
        self.host_irqs = 0
        #: (name of a request, errno) that the next requests of that name fail with, once each.
        self.faults: deque[tuple[str, int]] = deque()
        #: Every request that came in, by name, the failed ones too.
        self.requests: list[str] = []
        self.uses_msi = False
        self._pin, self._can_mask, self._taken = pin, can_mask, host_irq_taken
        self._lock = threading.RLock()
        self._on = self._masked = self._guest_disables = self._gone = False
        self._trigger: tuple[int, int | None] | None = None
        self._epoll = select.epoll()
        self._bell = eventfd.create()
        self._epoll.register(self._bell, select.EPOLLIN)
        self._attached: tuple[int, int | None] = (_STOP, None)
        self._thread = threading.Thread(target=self._listen, name="fake virqfd", daemon=True)
        self._thread.start()

    # -- what a test looks at and turns

    @property
    def is_on(self) -> bool:
        return self._on

    @property
    def is_masked(self) -> bool:
        return self._masked

    @property
    def has_unmask_listener(self) -> bool:
        """Whether a virqfd is attached: true until its eventfd's *last* descriptor is closed."""
        watched = re.findall(r"^tfd:\s+(\d+)", Path(f"/proc/self/fdinfo/{self._epoll.fileno()}").read_text(), re.M)
        return len(watched) > 1

    @property
    def can_sleep_forever(self) -> bool:
        """The state that must never be left behind: masked, and nobody in the kernel would ever unmask it."""
        return self._on and self._masked and not self.has_unmask_listener

    def physical_config(self) -> ConfigSpace:
        """The function's own registers, as sysfs shows them: DisINTx is the mask, whatever the guest thinks."""
        raw = bytearray(64)
        struct.pack_into("<HH", raw, 0, 0x8086, 0x100E)
        with self._lock:
            hidden = self._masked and self._can_mask
            struct.pack_into("<H", raw, PCI_COMMAND, 0x107 | (PCI_COMMAND_INTX_DISABLE if hidden else 0))
            struct.pack_into("<H", raw, PCI_STATUS, PCI_STATUS_INTERRUPT if self.card.asserts else 0)
            raw[0x3D] = self._pin
        return ConfigSpace(bytes(raw))

    def pull_out(self) -> None:
        """Surprise removal: from here on every call fails with ENODEV."""
        self._gone = True

    def __enter__(self) -> FakeVfioDevice:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """The last close of the device file: INTx off, listener gone."""
        with self._lock:
            self._disable()
            self._gone = True
        self._attached = (_STOP, None)
        self._epoll.modify(self._bell, select.EPOLLIN)
        eventfd.signal(self._bell)
        self._thread.join()
        self._epoll.close()
        os.close(self._bell)

    # -- the interface of vfio.Device

    @property
    def name(self) -> str:
        return "0000:00:10.0"

    def info(self) -> vfio.DeviceInfo:
        return vfio.DeviceInfo(vfio.DeviceFlag.PCI | vfio.DeviceFlag.RESET, 9, vfio.VFIO_PCI_NUM_IRQS)

    def region_info(self, index: int) -> vfio.RegionInfo:
        if not 0 <= index < 9:
            raise KernelError("VFIO_DEVICE_GET_REGION_INFO", self.name, errno.EINVAL)
        size = {0: BAR_SIZE, vfio.VFIO_PCI_CONFIG_REGION_INDEX: 256}.get(index, 0)
        flags = vfio.RegionFlag.READ | vfio.RegionFlag.WRITE if size else vfio.RegionFlag(0)
        return vfio.RegionInfo(index, flags, size, index << 40)

    def irq_info(self, index: int = vfio.VFIO_PCI_INTX_IRQ_INDEX) -> vfio.IrqInfo:
        if not 0 <= index < vfio.VFIO_PCI_NUM_IRQS:
            raise KernelError("VFIO_DEVICE_GET_IRQ_INFO", self.name, errno.EINVAL)
        flags = vfio.IrqFlag.EVENTFD | vfio.IrqFlag.MASKABLE | vfio.IrqFlag.AUTOMASKED
        return vfio.IrqInfo(index, flags, 1 if index == 0 and self._pin else 0)

    def read(self, region: vfio.RegionInfo, offset: int, length: int) -> bytes:
        if self._gone:
            raise KernelError("pread", f"region {region.index} of {self.name}", errno.EIO)
        with self._lock:
            if region.index == 0:
                value = self.card.read(offset).to_bytes(length, "little")
                self._line_changed()
                return value
            raw = bytearray(self.physical_config().raw)
            command = 0x107 | (PCI_COMMAND_INTX_DISABLE if self._guest_disables else 0)
            struct.pack_into("<H", raw, PCI_COMMAND, command)
            return bytes(raw[offset : offset + length])

    def write(self, region: vfio.RegionInfo, offset: int, data: bytes) -> None:
        if self._gone:
            raise KernelError("pwrite", f"region {region.index} of {self.name}", errno.EIO)
        with self._lock:
            if region.index == 0:
                self.card.write(offset, int.from_bytes(data, "little"))
            elif offset == PCI_COMMAND:
                self._guest_disables = bool(int.from_bytes(data[:2], "little") & PCI_COMMAND_INTX_DISABLE)
                if self._guest_disables:
                    self._masked = True
                else:
                    self._unmask()
            self._line_changed()

    def set_irqs(self, request: vfio.IrqRequest) -> None:
        self.requests.append(request.name)
        with self._lock:
            number = self._fault(request.name) or self._answer(vfio.decode_irq_set(request.encoded))
        if number:
            raise KernelError(f"VFIO_DEVICE_SET_IRQS ({request.name})", self.name, number)

    # -- the kernel's side, under the lock: each returns an errno, 0 for success

    def _fault(self, name: str) -> int:
        if self._gone:
            return errno.ENODEV
        if self.faults and self.faults[0][0] == name:
            return self.faults.popleft()[1]
        return 0

    def _answer(self, request: vfio.DecodedIrqSet) -> int:
        flags, data = vfio.IrqSet(request.flags & 0x3F), request.flags & vfio.DATA_TYPES
        most = self.irq_info(request.index).count if 0 <= request.index < vfio.VFIO_PCI_NUM_IRQS else 0
        need = {vfio.IrqSet.DATA_BOOL: 1, vfio.IrqSet.DATA_EVENTFD: 4}.get(vfio.IrqSet(data), 0) * request.count
        if request.flags & ~0x3F or request.start >= most or request.start + request.count > most:
            return errno.EINVAL
        if data.bit_count() != 1 or request.argsz < 20 + need or len(request.data) < need:
            return errno.EINVAL
        actions = {
            vfio.IrqSet.ACTION_MASK: self._set_mask,
            vfio.IrqSet.ACTION_UNMASK: self._set_unmask,
            vfio.IrqSet.ACTION_TRIGGER: self._set_trigger,
        }
        action = actions.get(flags & vfio.ACTION_TYPES)
        return errno.ENOTTY if action is None else action(flags, request)

    def _set_mask(self, flags: vfio.IrqSet, request: vfio.DecodedIrqSet) -> int:
        if not self._on or request.count != 1:
            return errno.EINVAL
        if flags & vfio.IrqSet.DATA_EVENTFD:
            return errno.ENOTTY
        self._masked = True
        return 0

    def _set_unmask(self, flags: vfio.IrqSet, request: vfio.DecodedIrqSet) -> int:
        if not self._on or request.count != 1:
            return errno.EINVAL
        if flags & vfio.IrqSet.DATA_EVENTFD:
            return self._attach(vfio.decode_eventfd(request.data))
        self._unmask()
        return 0

    def _set_trigger(self, flags: vfio.IrqSet, request: vfio.DecodedIrqSet) -> int:
        if not self._on and flags & vfio.IrqSet.DATA_NONE and request.count == 0:
            return errno.EINVAL
        if self._on and flags & vfio.IrqSet.DATA_NONE and request.count == 0:
            self._disable()
            return 0
        if request.count != 1 or (self.uses_msi and not self._on):
            return errno.EINVAL
        if flags & vfio.IrqSet.DATA_EVENTFD:
            return self._set_trigger_eventfd(vfio.decode_eventfd(request.data))
        if not self._on:
            return errno.EINVAL
        self._signal()
        return 0

    def _set_trigger_eventfd(self, fd: int) -> int:
        number, identity = _look(fd) if fd >= 0 else (0, None)
        if number:
            return number
        if not self._on:
            if self._taken and not self._can_mask:
                return errno.EBUSY
            self._on, self._masked = True, self._guest_disables
        self._trigger = (fd, identity) if fd >= 0 else None
        self._line_changed()
        return 0

    def _attach(self, fd: int) -> int:
        if fd < 0:
            self._detach()
            return 0
        number, identity = _look(fd)
        if number:
            return number
        if self.has_unmask_listener:
            return errno.EBUSY
        self._attached = (fd, identity)
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        return 0

    def _detach(self) -> None:
        fd, identity = self._attached
        if fd >= 0 and _look(fd) == (0, identity):
            self._epoll.unregister(fd)
        elif self.has_unmask_listener:
            # The number was closed while a dup lives: only a new epoll forgets the registration.
            raise AssertionError("the fake cannot detach an eventfd whose own descriptor was closed")
        self._attached = (_STOP, None)

    def _disable(self) -> None:
        self._detach()
        self._on = self._masked = False
        self._trigger = None

    def _unmask(self) -> None:
        if not self._masked or self._guest_disables:
            return
        if self.card.asserts and self._can_mask:
            self._signal()  # vfio_pci_intx_unmask_handler(): still pending, stays masked
        else:
            self._masked = False
            self._line_changed()

    def _line_changed(self) -> None:
        if self._on and self.card.asserts and not self._masked:
            self._masked = True
            self.host_irqs += 1
            self._signal()

    def _signal(self) -> None:
        if self._trigger is None or self._guest_disables:
            return
        fd, identity = self._trigger
        if _look(fd) == (0, identity):  # else: the counter lives on in the kernel, where nobody sees it
            eventfd.signal(fd)

    def _listen(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._bell:
                    return
                with self._lock:
                    if fd == self._attached[0] and _look(fd) == (0, self._attached[1]):
                        eventfd.drain(fd)
                    self._unmask()


def _look(fd: int) -> tuple[int, int | None]:
    """(errno, identity) of what should be an eventfd, as ``eventfd_ctx_fdget`` would see it."""
    try:
        info = eventfd.inspect(fd, proc=PROC)
    except KernelError:
        return errno.EBADF, None
    return (0, info.identity) if info else (errno.EINVAL, None)
