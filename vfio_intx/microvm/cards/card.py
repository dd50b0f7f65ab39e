"""What has to be known of a card to make it interrupt for real and to quiet it: a few register offsets.

A card file says which registers; :class:`Asserter` writes them. Where no file knows a card, VFIO signals the trigger by
software instead: that proves the wiring, but it does not mask the line, so nothing is unmasked either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vfio_intx.abi import vfio
from vfio_intx.microvm.guest import Quiet
from vfio_intx.microvm.schemes.line import Registers


@dataclass(frozen=True, slots=True)
class Write:
    """One 32-bit register write: byte offset in the BAR, value."""

    offset: int
    value: int


@dataclass(frozen=True, slots=True)
class Card:
    """How one family of cards asserts INTx on demand.

    :ivar ids: (vendor, device) of every function that it is right for.
    :ivar bar: the BAR that its registers are in.
    :ivar enable: writes that let the chosen cause, and no other, reach the pin.
    :ivar clear: offsets to read once after that, so that nothing old is pending.
    :ivar assert_: the write that raises the cause.
    :ivar disable: writes that keep the card quiet for good.
    :ivar quiet: how the guest's handler quiets it, with ``status`` the register it reads and ``acknowledge`` the one it
        may write.
    """

    name: str
    ids: frozenset[tuple[int, int]]
    bar: int
    enable: tuple[Write, ...]
    clear: tuple[int, ...]
    assert_: Write
    disable: tuple[Write, ...]
    quiet: Quiet
    status: int
    acknowledge: int


class Asserter(Protocol):
    """Somebody who makes the line's trigger fire."""

    #: Whether it is the device's own interrupt, which masks the line until it is unmasked.
    real: bool

    def prepare(self) -> None:
        """Make the device ready and silent. :raise KernelError: from VFIO."""

    def fire(self) -> None:
        """One interrupt, now."""

    def silence(self) -> None:
        """Keep the device quiet from here on; harmless when done twice."""


class CardAsserter:
    """The card's own interrupt, through its registers."""

    real = True

    def __init__(self, card: Card, registers: Registers) -> None:
        self._card = card
        self._registers = registers
        # The one write of the hot path, without a look-up in it.
        self._write = registers.write
        self._offset, self._value = card.assert_.offset, card.assert_.value

    def prepare(self) -> None:
        """See :meth:`Asserter.prepare`."""
        self.silence()
        for write in self._card.enable:
            self._registers.write(write.offset, write.value)

    def fire(self) -> None:
        """See :meth:`Asserter.fire`."""
        self._write(self._offset, self._value)

    def silence(self) -> None:
        """See :meth:`Asserter.silence`."""
        for write in self._card.disable:
            self._registers.write(write.offset, write.value)
        for offset in self._card.clear:
            self._registers.read(offset)


class SoftwareAsserter:
    """VFIO's software trigger, for cards that no file knows. Not the device's interrupt: the line is not masked."""

    real = False

    def __init__(self, device: vfio.Device) -> None:
        self._device = device

    def prepare(self) -> None:
        """Nothing to make ready."""

    def fire(self) -> None:
        """See :meth:`Asserter.fire`."""
        self._device.set_irqs(vfio.LOOPBACK)

    def silence(self) -> None:
        """Nothing to quiet."""
