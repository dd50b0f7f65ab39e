"""The exception tree, on one screen: whose fault it is decides the class, the class decides the exit status.

::

    VfioIntxError                   exit  whose fault, what it leaves
    ├── UsageError                  2     you: a malformed argument; nothing was touched
    ├── WorldError                  1     the machine or a peer; the message says what was left and what to do next
    │   ├── KernelError                   a system call failed: operation, object, errno
    │   ├── MissingError                  something that should exist does not (device, socket, module, /dev/kvm)
    │   ├── RefusedError                  we refuse, because going on could hurt the host (live route, mounted disk)
    │   ├── VerifyError                   an action reported success but reading back says otherwise
    │   ├── BusyError                     somebody else holds it: a monitor, a group, our own lock
    │   └── PeerError                     the QEMU at the other end
    │       ├── PeerTimeout               it did not answer within a named deadline; the outcome is unknown
    │       ├── PeerGone                  it closed the connection or died; the outcome is unknown
    │       ├── PeerGarbage               it sent what the protocol does not allow
    │       └── PeerRefused               it answered with an error of its own (class and description kept)
    ├── LabLost                     3     the lab machine died; says nothing about the code under test
    └── InternalError               70    a bug of ours

``str(error)`` is one sentence for a person. ``hint`` is the next thing to do. Objects are attributes, never to be
parsed out of the text. Only ``cli/`` prints an error or turns one into an exit status.
"""

from __future__ import annotations

import errno as _errno
import os


class VfioIntxError(Exception):
    """Base of everything this project raises on purpose. ``hint`` is the next step for the reader, or None."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(VfioIntxError):
    """The caller gave something malformed. Raised before anything is read or changed."""

    exit_status = 2


class WorldError(VfioIntxError):
    """The machine, not the caller and not this program, is in the way."""


class KernelError(WorldError):
    """A system call failed.

    :param operation: what was asked, in the kernel's own word (``KVM_IRQFD``, ``open``, ``write``).
    :param target: the object it was asked of (a path, or the role of a descriptor such as ``VM`` or ``device``).
    :param errno: the number the kernel gave; ``errno_name`` is its symbol.
    """

    def __init__(self, operation: str, target: str, errno: int, *, hint: str | None = None) -> None:
        self.operation = operation
        self.target = target
        self.errno = errno
        self.errno_name = _errno.errorcode.get(errno, str(errno))
        super().__init__(f"{operation} on {target} failed: {os.strerror(errno)} ({self.errno_name})", hint=hint)


class MissingError(WorldError):
    """A thing that has to exist does not."""


class RefusedError(WorldError):
    """Going on could hurt the host; nothing was changed. The hint says how to go on safely or with ``--force``."""


class VerifyError(WorldError):
    """An action reported success, and reading back says otherwise."""


class BusyError(WorldError):
    """Another holder has the object; nothing was changed."""


class PeerError(WorldError):
    """The QEMU at the other end of a monitor is in the way."""


class PeerTimeout(PeerError):
    """No answer within a named deadline. Whether the command ran is unknown: read the state before acting again."""

    def __init__(self, peer: str, deadline: str, budget_s: float, *, hint: str | None = None) -> None:
        self.peer = peer
        self.deadline = deadline
        self.budget_s = budget_s
        super().__init__(f"{peer} did not answer within {budget_s:g} s (deadline: {deadline})", hint=hint)


class PeerGone(PeerError):
    """The peer closed the connection or died. Whether the last command ran is unknown."""


class PeerGarbage(PeerError):
    """The peer sent what the protocol does not allow. The connection is closed."""


class PeerRefused(PeerError):
    """The peer answered with an error: ``error_class`` and ``description`` are its words, control bytes escaped."""

    def __init__(self, command: str, error_class: str, description: str, *, hint: str | None = None) -> None:
        self.command = command
        self.error_class = error_class
        self.description = description
        super().__init__(f"QEMU refused {command}: {description} ({error_class})", hint=hint)


class LabLost(VfioIntxError):
    """The lab's machine died or never came up. This is never a verdict on the code that ran in it."""

    exit_status = 3


class InternalError(VfioIntxError):
    """A state this program promises not to reach."""

    exit_status = 70
