"""The ways a chain can be built: who injects, who hears the EOI, who unmasks."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from vfio_intx.errors import UsageError


class Scheme(Enum):
    """Who injects, who hears the EOI and who unmasks the host line."""

    IRQFD = "irqfd"
    """KVM injects and hears the EOI; vfio's virqfd unmasks. Nothing of it runs in userspace."""
    ACK_EVENTFD = "ack-eventfd"
    """Userspace injects; a resample irqfd whose trigger is never written tells of the EOI; userspace unmasks."""
    SPLIT = "split"
    """The IOAPIC lives in userspace and learns of the EOI by KVM_EXIT_IOAPIC_EOI."""
    TRAP = "trap"
    """Userspace injects and guesses the EOI from an access to a BAR (QEMU's x-no-kvm-intx=on)."""
    EDGE = "edge"
    """A plain irqfd on a level line: the negative control, which never acknowledges."""

    @classmethod
    def parse(cls, text: str, *, offered: Iterable[Scheme] | None = None) -> Scheme:
        """The scheme of that name, be it among those *offered* or not.

        :param offered: the schemes that the asking verb can use; all of them if none are given.
        :raise UsageError: there is none of that name; the hint lists those offered.
        """
        for scheme in cls:
            if text == scheme.value:
                return scheme
        names = ", ".join(scheme.value for scheme in (cls if offered is None else offered))
        raise UsageError(f"{text[:32]!r} is not a scheme", hint=f"one of {names}")
