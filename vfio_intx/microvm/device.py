"""A card with a level interrupt behind vfio: what the schemes are raced with where no real card is at hand.

It behaves as ``drivers/vfio/pci/vfio_pci_intrs.c`` and a simple card do together. The card asserts its line; vfio masks
it at once and signals the trigger eventfd; from then on nothing more is heard of the line until somebody signals the
unmask eventfd. If the card still asserts at that moment, the trigger is signalled again and the line stays masked.

The card's registers are one page of shared memory, which a guest sees as a BAR: the cause register holds the number of
the latest assertion, and the card asserts for as long as the acknowledge register does not hold the same number. No
access to them needs this process, exactly as with a mapped BAR.
"""

from __future__ import annotations

import mmap
import os
import select
import time
from array import array
from dataclasses import dataclass

from vfio_intx.abi import eventfd
from vfio_intx.abi.call import close_all

#: Offsets of the registers in the page, in bytes, on two cache lines; and their places in 32-bit words.
CAUSE = 0x00
ACKNOWLEDGE = 0x40
_CAUSE_WORD = CAUSE // 4
_ACKNOWLEDGE_WORD = ACKNOWLEDGE // 4
PAGE = 4096
_WORD = 0xFFFF_FFFF


@dataclass(slots=True)
class Tally:
    """What the card saw in some rounds.

    :ivar asserted: assertions made; ``acknowledged``: those that were quieted and unmasked again.
    :ivar lost: those that never were, also not within the time of grace; the line was then opened by force.
    :ivar refired: unmasks that came while the card still asserted, so that the trigger was signalled again.
    :ivar late: of the acknowledged ones, those that took longer than allowed. A busy machine does that, no scheme.
    """

    asserted: int = 0
    acknowledged: int = 0
    lost: int = 0
    refired: int = 0
    late: int = 0


class LevelDevice:
    """The card and its vfio line. ``trigger`` and ``unmask`` are the line's two eventfds; whoever wires it uses them.

    :ivar memory: the register page, for :meth:`~vfio_intx.microvm.machine.Machine.map_memory`.
    """

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, PAGE)
        self.registers = memoryview(self.memory).cast("I")
        self.trigger = self.unmask = -1
        try:
            self.trigger = eventfd.create()
            self.unmask = eventfd.create()
        except BaseException:
            self.close()
            raise
        self.masked = False
        self._poller = select.poll()
        self._poller.register(self.unmask, select.POLLIN)

    def watch(self, fd: int) -> None:
        """Let :meth:`race` end as soon as *fd* is readable (a vCPU that died)."""
        self._poller.register(fd, select.POLLIN)

    @property
    def is_asserting(self) -> bool:
        """Whether the card drives its line."""
        return self.registers[_CAUSE_WORD] != self.registers[_ACKNOWLEDGE_WORD]

    def raise_line(self) -> None:
        """The card asserts, once more if it does already; vfio masks the line and signals, unless it is masked."""
        self.registers[_CAUSE_WORD] = self.registers[_CAUSE_WORD] + 1 & _WORD
        if not self.masked:
            self.masked = True
            eventfd.signal(self.trigger)

    def take_unmask(self) -> bool:
        """Act on the unmask eventfd as vfio does; whether it was signalled. Fires again if the card still asserts."""
        if not eventfd.drain(self.unmask):
            return False
        if self.masked and self.is_asserting:
            eventfd.signal(self.trigger)
        else:
            self.masked = False
        return True

    def reset(self) -> None:
        """Quiet the card and open its line by force, as an operator's reset does."""
        self.registers[_CAUSE_WORD] = self.registers[_ACKNOWLEDGE_WORD]
        eventfd.drain(self.unmask)
        eventfd.drain(self.trigger)
        self.masked = False

    def race(
        self, count: int, durations: array[int], allowed_s: float, bearable: int, *, grace_s: float = 0.0
    ) -> Tally:
        """Assert *count* times, each time waiting until the line is unmasked and quiet.

        :param durations: where the round trips go, in ns; 0 stands for a lost one.
        :param allowed_s: how long one may take. After that it is waited for *grace_s* more, and is late if it comes,
            and lost if not, whereupon :meth:`reset` is done. There is no more grace once one was lost.
        :param bearable: so many losses end the race.
        :return: the figures; fewer than *count* assertions if that happened, or if a descriptor given to
            :meth:`watch` was readable.
        """
        # Names of this function only: the loop runs for every interrupt.
        registers, poll, trigger, unmask = self.registers, self._poller.poll, self.trigger, self.unmask
        write, read, now, allowed_ms = os.eventfd_write, os.eventfd_read, time.perf_counter_ns, int(allowed_s * 1000)
        grace_ms, allowed_ns = int(grace_s * 1000), int(allowed_s * 1e9)
        number, acknowledged, lost, refired, late = registers[_CAUSE_WORD], 0, 0, 0, 0
        for place in range(count):
            number = number + 1 & _WORD
            self.masked = True
            began = now()
            registers[_CAUSE_WORD] = number
            write(trigger, 1)
            while poll(allowed_ms) or poll(0 if lost else grace_ms):
                try:
                    read(unmask)
                except BlockingIOError:
                    # Then it is a watched descriptor that is ready.
                    return Tally(place, acknowledged, lost, refired, late)
                if registers[_ACKNOWLEDGE_WORD] == number:
                    durations[place] = trip = now() - began
                    acknowledged += 1
                    late += trip > allowed_ns
                    self.masked = False
                    break
                write(trigger, 1)
                refired += 1
            else:
                durations[place] = 0
                lost += 1
                self.reset()
                number = registers[_CAUSE_WORD]
                if lost >= bearable:
                    return Tally(place + 1, acknowledged, lost, refired, late)
        return Tally(count, acknowledged, lost, refired, late)

    def close(self) -> None:
        """Give page and eventfds back. Harmless when done twice."""
        self.registers.release()
        self.memory.close()
        close_all(self.trigger, self.unmask)
        self.trigger = self.unmask = -1


class MemoryRegisters:
    """Trapped access to a page of registers: what a VMM does for a guest whose BAR is not mapped."""

    def __init__(self, registers: memoryview) -> None:
        self._registers = registers

    def read(self, offset: int) -> int:
        """The 32-bit register at *offset*."""
        return self._registers[offset >> 2]

    def write(self, offset: int, value: int) -> None:
        """Set the 32-bit register at *offset*."""
        self._registers[offset >> 2] = value & _WORD
