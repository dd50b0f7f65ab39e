"""The kernel's log, as far as it speaks of interrupts and vfio; words of strangers, bounded and escaped."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from vfio_intx.chain.fact import Fact
from vfio_intx.host.root import HostRoot
from vfio_intx.names import HostIrq, escape

#: What matters here; everything else is dropped while reading, so that a long log costs no memory.
_RELEVANT = (
    r"genirq: Flags mismatch|nobody cared|Disabling IRQ|(?:^|;|\] ?)(?:handlers:|\[<)|vfio|INTx|"
    r"DMAR: \[|AMD-Vi: Event|irq_domain_remove|AER:"
)
_FLAGS = r"(?a)genirq: Flags mismatch irq (\d{1,6})\. ([0-9a-f]{8}) \((.+)\) vs\. ([0-9a-f]{8}) \((.+)\)"
_NOBODY = r"(?a)irq (\d{1,6}): nobody cared"
_HANDLER = r"\[<[0-9a-fA-Fpx]+>\]\s*(\S+)(?:\s+\[(\S+)\])?"
_STAMP = r"(?a)\[\s*(\d{1,9})\.(\d{6})\]\s?"
_IRQF_SHARED = 0x80
_LONGEST_LINE, _MOST_LINES, _BUFFER = 500, 5000, 8192


class LogLine(NamedTuple):
    """One line: seconds since boot and its text."""

    at: float
    text: str


class FlagsMismatch(NamedTuple):
    """``genirq: Flags mismatch``: a request for a line that its holders do not share, or that would not share it."""

    irq: HostIrq
    asked: str
    holder: str
    asked_shared: bool
    holder_shared: bool


class NobodyCared(NamedTuple):
    """The kernel has disabled a line because its handlers claimed next to nothing; *handlers* by their C names."""

    irq: HostIrq
    at: float
    handlers: tuple[str, ...]


class History(NamedTuple):
    """What the log tells of lines, gathered once for all functions.

    :ivar faults: the lines in which an IOMMU tells of refused DMA.
    """

    mismatches: tuple[FlagsMismatch, ...]
    given_up: tuple[NobodyCared, ...]
    faults: tuple[LogLine, ...]


def history_of(lines: tuple[LogLine, ...]) -> History:
    """The history that these lines tell."""
    faults = tuple(line for line in lines if "DMAR:" in line.text or "AMD-Vi:" in line.text)
    return History(flags_mismatches(lines), nobody_cared(lines), faults)


def read_log(root: HostRoot) -> Fact[tuple[LogLine, ...]]:
    """The relevant lines of ``/dev/kmsg``, oldest first; unknown where it may not be read."""
    try:
        fd = os.open(root.file("dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Fact.unknown("/dev/kmsg", error.strerror or str(error))
    try:
        return Fact.known(parse_log(_records(fd)), "/dev/kmsg")
    finally:
        os.close(fd)


def _records(fd: int) -> str:
    # One read gives one record; EAGAIN is the end, EPIPE says that records were overwritten meanwhile.
    pieces: list[bytes] = []
    while len(pieces) < 1 << 20:
        try:
            piece = os.read(fd, _BUFFER)
        except BlockingIOError:
            break
        except BrokenPipeError:
            continue
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces).decode("utf-8", "replace")


def parse_log(text: str) -> tuple[LogLine, ...]:
    """The relevant lines of a log, in the form of ``/dev/kmsg`` or of ``dmesg``; at most the newest 5,000."""
    is_relevant = re.compile(_RELEVANT).search
    lines = [line for line in text.split("\n") if not line.startswith(" ") and is_relevant(line)]
    return tuple(_parse_line(line) for line in lines[-_MOST_LINES:])


def _parse_line(line: str) -> LogLine:
    head, semicolon, message = line.partition(";")
    fields = head.split(",")
    if semicolon and len(fields) >= 4 and fields[2].isascii() and fields[2].isdigit():
        return LogLine(int(fields[2][:15]) / 1e6, escape(message[:_LONGEST_LINE]))
    stamp = re.match(_STAMP, line)
    if stamp:
        return LogLine(int(stamp[1]) + int(stamp[2]) / 1e6, escape(line[stamp.end() :][:_LONGEST_LINE]))
    return LogLine(0.0, escape(line[:_LONGEST_LINE]))


def flags_mismatches(lines: tuple[LogLine, ...]) -> tuple[FlagsMismatch, ...]:
    """Every refused request in the log. The flags are read as hexadecimal numbers: newer kernels set more bits."""
    matches = (re.search(_FLAGS, line.text) for line in lines)
    return tuple(
        FlagsMismatch(
            HostIrq(int(match[1])),
            match[3],
            match[5],
            bool(int(match[2], 16) & _IRQF_SHARED),
            bool(int(match[4], 16) & _IRQF_SHARED),
        )
        for match in matches
        if match is not None
    )


def nobody_cared(lines: tuple[LogLine, ...]) -> tuple[NobodyCared, ...]:
    """Every line that the kernel gave up on, each with the handlers that the log lists under it."""
    found: list[NobodyCared] = []
    for line in lines:
        match, handler = re.search(_NOBODY, line.text), re.match(_HANDLER, line.text)
        if match:
            found.append(NobodyCared(HostIrq(int(match[1])), line.at, ()))
        elif handler and found:
            last = found[-1]
            found[-1] = NobodyCared(last.irq, last.at, (*last.handlers, handler[1]))
    return tuple(found)
