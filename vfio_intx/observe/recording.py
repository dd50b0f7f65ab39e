"""A recording as files: the kernel's own descriptions of its events and the pages as they were read.

What was recorded on one kernel can so be joined anywhere, as often as one likes: the tests do it with lines of every
kernel they know, and a user can send one along with a question. A folder holds::

    header_page header_event        as in events/
    formats/NAME                    an event's format file
    cpuN.pages                      pages of trace_pipe_raw, each of page_size bytes, cleared behind their data
    recording.json                  page_size, the target, the order of the pages
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import msgspec

from vfio_intx.abi.tracepoints import Event, PageDecoder, Wanted, data_end, parse_format, parse_header_page
from vfio_intx.errors import MissingError, VerifyError
from vfio_intx.names import Gsi, HostIrq
from vfio_intx.observe.events import TRACEPOINTS, Target


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    """``recording.json``."""

    kernel: str
    page_size: int
    pages: list[tuple[int, int]]
    gsi: int | None = None
    threads: list[int] = []
    irq: int | None = None
    action: str | None = None
    by_message: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording that was read back.

    :ivar events: sorted by time.
    :ivar damaged: pages that contradict themselves.
    """

    kernel: str
    target: Target
    events: tuple[Event, ...]
    damaged: int


class Recorder:
    """Takes what :class:`~vfio_intx.observe.tracing.Instance` reads, for :meth:`save`. Keeps it in memory."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.pages: list[tuple[int, bytes]] = []

    def described(self, name: str, text: str) -> None:
        """One description file of the kernel (``header_page``, ``formats/kvm_set_irq``)."""
        self.files[name] = text

    def page(self, cpu: int, page: bytes) -> None:
        """One page of a CPU."""
        self.pages.append((cpu, page))

    def save(self, folder: Path, kernel: str, target: Target) -> None:
        """Write everything into *folder*, which is made. :raise OSError: full disk and the like; *folder* stays."""
        layout = parse_header_page(self.files["header_page"])
        (folder / "formats").mkdir(parents=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, "ascii")
        cleared = [(cpu, page[: (end := data_end(layout, page))] + bytes(len(page) - end)) for cpu, page in self.pages]
        for cpu in {cpu for cpu, _ in cleared}:
            pages = b"".join(page for at, page in cleared if at == cpu)
            (folder / f"cpu{cpu}.pages.gz").write_bytes(gzip.compress(pages, mtime=0))
        head = _Head(
            kernel=kernel,
            page_size=len(self.pages[0][1]) if self.pages else 4096,
            pages=[(cpu, len(page)) for cpu, page in self.pages],
            gsi=target.gsi,
            threads=list(target.threads),
            irq=target.irq,
            action=target.action,
            by_message=target.by_message,
        )
        (folder / "recording.json").write_bytes(msgspec.json.encode(head) + b"\n")


def load(folder: Path) -> Recording:
    """Read a recording back. :raise MissingError: a file of it is not there. :raise VerifyError: it is not one."""
    try:
        head = msgspec.json.decode((folder / "recording.json").read_bytes(), type=_Head)
        layout = parse_header_page((folder / "header_page").read_text("ascii"))
        decoder = PageDecoder(layout, _wanted(folder))
        events: list[Event] = []
        damaged = sum(decoder.decode(page, cpu, events).damaged for cpu, page in _pages(folder, head))
    except FileNotFoundError as error:
        raise MissingError(f"{error.filename} of the recording is missing") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise VerifyError(f"{folder} does not read as a recording: {error}") from error
    events.sort(key=itemgetter(0))
    irq = None if head.irq is None else HostIrq(head.irq)
    target = Target(None if head.gsi is None else Gsi(head.gsi), tuple(head.threads), irq, head.action, head.by_message)
    return Recording(head.kernel, target, tuple(events), damaged)


def _wanted(folder: Path) -> Iterator[Wanted]:
    for point in TRACEPOINTS.values():
        path = folder / "formats" / point.name
        if path.exists():
            yield Wanted(point.kind, parse_format(path.read_text("ascii")), point.fields)


def _pages(folder: Path, head: _Head) -> Iterable[tuple[int, bytes]]:
    at: dict[int, int] = {}
    whole = {
        cpu: gzip.decompress((folder / f"cpu{cpu}.pages.gz").read_bytes()) for cpu in {cpu for cpu, _ in head.pages}
    }
    for cpu, size in head.pages:
        place = at.get(cpu, 0)
        at[cpu] = place + size
        yield cpu, whole[cpu][place : place + size]
