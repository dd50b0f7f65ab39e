"""A row of the selftest, and what a trial gets to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from vfio_intx.errors import InternalError, VfioIntxError
from vfio_intx.microvm.machine import Machine


class Verdict(Enum):
    """What a trial came to."""

    OK = "ok"
    WARN = "warn"
    """Not as expected, but a line can live with it; the meaning says how."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Row:
    """One trial: what was expected, what was seen, and what that means for a passed-through card.

    :ivar required: whether a line cannot be carried where this fails.
    """

    name: str
    expected: str
    seen: str
    verdict: Verdict
    meaning: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Ground:
    """What trials stand on.

    :ivar kvm_fd: ``/dev/kvm``, the caller's.
    :ivar count_fds: how many descriptors this process has open now.
    """

    kvm_fd: int
    count_fds: Callable[[], int]

    def need_irqchip(self) -> None:
        """:raise MissingError: KVM has no full in-kernel irqchip."""
        Machine(self.kvm_fd).close()


def judged(
    name: str,
    expected: str,
    trial: Callable[[], tuple[bool, str]],
    *,
    good: str,
    bad: str,
    required: bool = False,
) -> Row:
    """The row of a trial that answers whether all is well and what it saw.

    :param good: the meaning where it is well, ``bad`` where it is not. What the trial raises is its failure.
    """
    try:
        well, seen = trial()
    except InternalError:
        raise
    except VfioIntxError as error:
        well, seen = False, str(error)
    failed = Verdict.FAIL if required else Verdict.WARN
    return Row(name, expected, seen, Verdict.OK if well else failed, good if well else bad, required)
