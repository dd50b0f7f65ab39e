"""One private tracefs instance for one run: made, filled with filtered events, drained page by page, always removed.

The global buffer and its settings are never written to. Enabling an event in an instance does not enable it elsewhere.

Sources: ``Documentation/trace/ftrace.rst`` (instances), ``Documentation/trace/events.rst`` (filters),
``kernel/trace/trace.c`` (``instance_rmdir``, ``tracing_buffers_read``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Protocol

from vfio_intx.abi.tracepoints import (
    CpuStatistics,
    Event,
    PageDecoder,
    PageResult,
    Wanted,
    parse_format,
    parse_header_event,
    parse_header_page,
    parse_statistics,
)
from vfio_intx.errors import KernelError, MissingError, VerifyError
from vfio_intx.host.root import HostRoot
from vfio_intx.observe.events import LOST, Enable
from vfio_intx.observe.tracefs import CLOCK, check_clock, find_tracefs, lockdown, new_name, put, remove, sweep

_CPU = re.compile(r"cpu([0-9]{1,5})", re.ASCII)
_PAGE = 4096


class Keeper(Protocol):
    """Wants to have what is read, as it is read (:class:`~vfio_intx.observe.recording.Recorder`)."""

    def described(self, name: str, text: str) -> None:
        """A description file of the kernel."""

    def page(self, cpu: int, page: bytes) -> None:
        """A page of a CPU."""


class Instance:
    """A private instance; a context manager. Nothing is recorded before :meth:`start`.

    :ivar name: its name below ``instances``.
    :ivar missed: events that pages said were lost; the kernel's own count is in :meth:`statistics`.
    :ivar damaged: pages that contradicted themselves.
    :ivar size_kb: of the buffer of each CPU. It is set once: the kernel stops recording while it changes a buffer's
        size (``tracing_stop_tr`` in ``__tracing_resize_ring_buffer``), and counts nothing of what it misses then.

    :raise MissingError: (on entering) no tracefs, no such clock, or an event of the list that this kernel lacks.
    :raise KernelError: (on entering) no rights, lockdown, no memory. Nothing is left behind.
    """

    def __init__(
        self, root: HostRoot, enables: Iterable[Enable], *, size_kb: int, keeper: Keeper | None = None
    ) -> None:
        self._keeper = keeper
        self._root = root
        self._enables = tuple(enables)
        self._filters: dict[str, str | None] = {}
        self._fds: dict[int, int] = {}
        self._path: Path | None = None
        self.size_kb = size_kb
        self.missed = 0
        self.damaged = 0
        self.without: list[str] = []

    @property
    def name(self) -> str:
        """Its name below ``instances``. Only inside the ``with``."""
        return self._at.name

    @property
    def _at(self) -> Path:
        if self._path is None:
            raise ValueError("the instance is not open")
        return self._path

    def __enter__(self) -> Instance:
        tracefs = find_tracefs(self._root)
        sweep(self._root)
        path = tracefs / "instances" / new_name(self._root)
        try:
            path.mkdir()
        except OSError as error:
            raise self._refused("mkdir", path, error) from error
        self._path = path
        try:
            self._set_up(tracefs)
        except BaseException as error:
            try:
                self.close()
            except KernelError as second:
                error.add_note(str(second))
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, close and remove. Idempotent. :raise KernelError: it could not be removed; it then is switched off."""
        self._close_readers()
        path, self._path = self._path, None
        if path is not None:
            try:
                remove(path)
            except OSError as error:
                hint = f"when nothing holds it open any more: rmdir {path}"
                raise KernelError("rmdir", str(path), error.errno or 0, hint=hint) from error

    def _close_readers(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _refused(self, operation: str, path: Path, error: OSError) -> KernelError:
        hint = None
        if error.errno in (errno.EPERM, errno.EACCES):
            hint = "tracing needs root: run with sudo"
            if lockdown(self._root):
                hint = "the kernel is locked down (confidentiality), which forbids tracing: see kernel_lockdown(7)"
        elif error.errno == errno.ENOMEM:
            hint = "ask for a smaller buffer"
        return KernelError(operation, str(path), error.errno or 0, hint=hint)

    def _write(self, file: str, text: str) -> None:
        path = self._at / file
        try:
            put(path, text)
        except OSError as error:
            raise self._refused("write", path, error) from error

    def _read(self, path: Path) -> str:
        try:
            return path.read_text("ascii", "replace")
        except OSError as error:
            raise self._refused("read", path, error) from error

    def _describe(self, path: Path, name: str) -> str:
        text = self._read(path)
        if self._keeper is not None:
            self._keeper.described(name, text)
        return text

    def _set_up(self, tracefs: Path) -> None:
        self._write("tracing_on", "0")
        self._choose_clock()
        # In older kernels (seen on 6.1) one flag, ring_buffer_expanded, says for all instances that buffers have grown
        # from their first few KiB. A size given to ours sets it, and whoever uses the global buffer next is left with
        # 7 KiB. A write to an event switch grows the global buffer first (tracing_update_buffers), as any use does.
        self._write("events/enable", "0")
        self._write("buffer_size_kb", str(self.size_kb))
        with contextlib.suppress(OSError):
            # Names of threads are not needed, and keeping them would hook every context switch.
            put(self._at / "options/record-cmd", "0")
        parse_header_event(self._describe(tracefs / "events/header_event", "header_event"))
        wanted = list(self._enable_all())
        layout = parse_header_page(self._describe(tracefs / "events/header_page", "header_page"))
        self._decoder = PageDecoder(layout, wanted)
        self._page = self._page_size()
        self._open_readers()

    def _choose_clock(self) -> None:
        check_clock(self._read(self._at / "trace_clock"))
        self._write("trace_clock", CLOCK)
        self.verify_clock()

    def _enable_all(self) -> Iterator[Wanted]:
        for enable in self._enables:
            point = enable.point
            folder = self._at / "events" / point.path
            if not folder.is_dir():
                if point.optional:
                    self.without.append(point.path)
                    continue
                hint = "load the module that has it (modprobe kvm)" if point.group == "kvm" else None
                raise MissingError(f"this kernel has no tracepoint {point.path}", hint=hint)
            if enable.filter is not None:
                self._write(f"events/{point.path}/filter", enable.filter)
            self._filters[point.path] = enable.filter
            yield Wanted(
                point.kind, parse_format(self._describe(folder / "format", f"formats/{point.name}")), point.fields
            )

    def _page_size(self) -> int:
        # buffer_subbuf_size_kb came with Linux 6.8 (f9b94daa542a); before, a page is a page.
        path = self._at / "buffer_subbuf_size_kb"
        return int(self._read(path)) * 1024 if path.exists() else max(_PAGE, os.sysconf("SC_PAGESIZE"))

    def _open_readers(self) -> None:
        for folder in sorted((self._at / "per_cpu").iterdir()):
            match = _CPU.fullmatch(folder.name)
            if match:
                path = folder / "trace_pipe_raw"
                try:
                    self._fds[int(match[1])] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError as error:
                    raise self._refused("open", path, error) from error

    def start(self) -> None:
        """Record from now on."""
        for enable in self._enables:
            if enable.point.path not in self.without:
                self._write(f"events/{enable.point.path}/enable", "1")
        self._write("tracing_on", "1")

    def refilter(self, enables: Iterable[Enable]) -> None:
        """Replace the filters of events that are on already; those that *enables* leaves out are switched off.

        The kernel swaps a filter whole: there is no moment without one (``apply_event_filter``).
        """
        wanted = {enable.point.path: enable.filter for enable in enables}
        for path in self._filters.keys() - wanted.keys():
            self._write(f"events/{path}/enable", "0")
            del self._filters[path]
        for path, filter_ in wanted.items():
            if self._filters.get(path, filter_) != filter_:
                self._write(f"events/{path}/filter", filter_ or "0")
                self._filters[path] = filter_

    def stop(self) -> None:
        """Record nothing more; what was recorded can still be drained."""
        self._write("tracing_on", "0")

    def drain(self, out: list[Event]) -> int:
        """Append what is recorded to *out*, each CPU's events oldest first; the most bytes a CPU had.

        No more than a buffer's size at once, so that a CPU which records as fast as we read does not keep us: after
        :meth:`stop` there is nothing left when this returns 0. A loss shows as an event of kind :data:`LOST` at the
        place where the kernel noticed it.
        """
        return max((self._drain_cpu(cpu, fd, out) for cpu, fd in self._fds.items()), default=0)

    def _drain_cpu(self, cpu: int, fd: int, out: list[Event]) -> int:
        taken, most = 0, self.size_kb * 1024
        while taken <= most:
            try:
                page = os.read(fd, self._page)
            except BlockingIOError:
                break
            except OSError as error:
                raise self._refused("read", Path(f"trace_pipe_raw of CPU {cpu}"), error) from error
            if not page:
                break
            taken += len(page)
            if self._keeper is not None:
                self._keeper.page(cpu, page)
            before = len(out)
            result = self._decoder.decode(page, cpu, out)
            if result.missed or result.missed is None or result.damaged:
                self._note_loss(cpu, before, result, out)
        return taken

    def _note_loss(self, cpu: int, before: int, page: PageResult, out: list[Event]) -> None:
        """Put it where the page begins: at its first event, and where it has none, at its own time."""
        missed = -1 if page.missed is None else page.missed
        self.missed += max(missed, 0)
        self.damaged += page.damaged
        time = out[before][0] if before < len(out) else page.time or monotonic_ns()
        out.insert(before, (time, LOST, cpu, (0, missed, int(page.damaged))))

    def statistics(self) -> dict[int, CpuStatistics]:
        """What the kernel counted, by CPU."""
        return {
            cpu: parse_statistics(self._read(self._at / "per_cpu" / f"cpu{cpu}" / "stats")) for cpu in sorted(self._fds)
        }

    def verify_clock(self) -> None:
        """:raise VerifyError: the instance does not run on :data:`CLOCK` after all."""
        if f"[{CLOCK}]" not in self._read(self._at / "trace_clock"):
            raise VerifyError(f"the trace clock was set to {CLOCK}, but reads otherwise")
