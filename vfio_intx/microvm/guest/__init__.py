"""The guest: its image, where things lie in its memory, and the mailbox through which host and guest talk.

The program is ``line.S``, the image ``line.bin``; the image is checked in, so that no assembler is needed to run it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

#: The guest's memory, from guest-physical address 0.
MEMORY_SIZE = 0x4000
CODE = 0x1000
MAILBOX = 0x2000
STACK_TOP = 0x4000
READY_MARK = 0x5854_4E49
DOORBELL_VECTOR = 0x50
FAULT_PORT = 0xF4
PIC_BASE_VECTOR = 0x20
DEFAULT_VECTOR = 0x40
_LEVEL_BIT = 1 << 15


class Word(IntEnum):
    """The mailbox: the place of each 32-bit word, counted in words. The first group is written by the host."""

    CHIP = 0x00 // 4
    PIN = 0x04 // 4
    VECTOR = 0x08 // 4
    REDIRECTION = 0x0C // 4
    QUIET = 0x10 // 4
    STATUS = 0x14 // 4
    ACKNOWLEDGE = 0x18 // 4
    STATUS_2 = 0x1C // 4
    ACKNOWLEDGE_2 = 0x20 // 4
    HOLD = 0x24 // 4
    COMMAND = 0x28 // 4
    NUDGE = 0x2C // 4
    READY = 0x80 // 4
    HANDLER_RUNS = 0x84 // 4
    IDLE_RUNS = 0x88 // 4
    STRAYS = 0x8C // 4
    HELD = 0x90 // 4
    CAUSE = 0x94 // 4
    CAUSE_2 = 0x98 // 4
    DOORBELLS = 0x9C // 4
    HANDLER_ENDS = 0xA0 // 4


_MAILBOX_WORDS = 0x100 // 4


class Pin(IntEnum):
    """The controller whose pin the guest programs. (The PIC delivers GSIs below 16 only.)"""

    IOAPIC = 0
    PIC = 1

    @property
    def label(self) -> str:
        """``ioapic`` or ``pic``."""
        return self.name.lower()


class Quiet(IntEnum):
    """How the handler quiets the device."""

    NEVER = 0
    """It does not: the line stays asserted, or nobody asserts it (the ceiling)."""
    SEQUENCE = 1
    """The model device: read the cause (a sequence number), write it to the acknowledge register."""
    READ = 2
    """Reading the cause clears it (Intel's ICR)."""
    WRITE_BACK = 3
    """Read the cause, write it to the acknowledge register (QEMU's edu)."""
    SEQUENCE_TWO = 4
    """As SEQUENCE, for two devices that share the line."""


class Hold(IntEnum):
    """Where the handler waits, until the word is cleared."""

    NONE = 0
    BEFORE_QUIET = 1
    BEFORE_EOI = 2


class Command(IntEnum):
    """What the guest does when the doorbell rings."""

    NOTHING = 0
    """But answer: what had been delivered to it before the doorbell has run by then."""
    MASK_PIN = 1
    UNMASK_PIN = 2


@dataclass(frozen=True, slots=True)
class GuestParameters:
    """What a guest is built for. Addresses are guest-physical and below 4 GiB.

    :ivar gsi: the pin of the IOAPIC (0-23) or, for the PIC, the IRQ (3-15).
    :ivar status: the cause register; ``acknowledge``: where the cause is written to (unused by READ).
    :ivar level: False programs an IOAPIC pin as edge-triggered, which no INTx line should be.
    """

    gsi: int = 20
    pin: Pin = Pin.IOAPIC
    quiet: Quiet = Quiet.SEQUENCE
    status: int = 0
    acknowledge: int = 0
    status_2: int = 0
    acknowledge_2: int = 0
    level: bool = True

    def __post_init__(self) -> None:
        lowest, highest = (3, 15) if self.pin is Pin.PIC else (0, 23)
        if not lowest <= self.gsi <= highest:
            raise ValueError(f"GSI {self.gsi} is no pin of the {self.pin.label} ({lowest} to {highest})")

    @property
    def vector(self) -> int:
        """The vector that the guest's handler is on."""
        return PIC_BASE_VECTOR + self.gsi if self.pin is Pin.PIC else DEFAULT_VECTOR


def image() -> bytes:
    """The built guest, to lie at :data:`CODE`."""
    return Path(__file__).with_name("line.bin").read_bytes()


def load(memory: mmap.mmap, parameters: GuestParameters) -> memoryview:
    """Put image and parameters into a guest's memory of :data:`MEMORY_SIZE` bytes; its mailbox, as 32-bit words.

    The mailbox keeps the mapping in use: release it before the mapping is closed.
    """
    code = image()
    memory[CODE : CODE + len(code)] = code
    mailbox = memoryview(memory)[MAILBOX : MAILBOX + _MAILBOX_WORDS * 4].cast("I")
    mailbox[Word.CHIP] = parameters.pin
    mailbox[Word.PIN] = parameters.gsi
    mailbox[Word.VECTOR] = parameters.vector
    mailbox[Word.REDIRECTION] = parameters.vector | (_LEVEL_BIT if parameters.level else 0)
    mailbox[Word.QUIET] = parameters.quiet
    mailbox[Word.STATUS] = parameters.status
    mailbox[Word.ACKNOWLEDGE] = parameters.acknowledge
    mailbox[Word.STATUS_2] = parameters.status_2
    mailbox[Word.ACKNOWLEDGE_2] = parameters.acknowledge_2
    return mailbox
