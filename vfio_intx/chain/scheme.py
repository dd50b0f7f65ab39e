"""The ways a chain can be built (design, section 2)."""

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
    def parse(cls, text: str, *, among: Iterable[Scheme] | None = None) -> Scheme:
        """The scheme of that name, which must be *among* those if they are given.

        :raise UsageError: listing the names that would do.
        """
        choices = tuple(cls if among is None else among)
        for scheme in choices:
            if text == scheme.value:
                return scheme
        known = any(text == scheme.value for scheme in cls)
        said = f"the scheme {text} cannot be chosen here" if known else f"{text[:32]!r} is not a scheme"
        raise UsageError(said, hint="one of " + ", ".join(scheme.value for scheme in choices))
