"""Keep L1 from waiting for ever for an interrupt that its emulated CPU has lost.

Seen: an L1 that stood still for minutes under a guest in heavy traffic, its vCPU halted with interrupts enabled
(``info registers``: HLT=1, IF set) and the timer's vector pending in its APIC (``info lapic``: IRR 236).

Read, as the likely cause, in QEMU 7.2: QEMU keeps what a vCPU has to look at in ``CPUState.interrupt_request``.
``helper_vmrun()`` and ``do_vmexit()`` in target/i386/tcg/sysemu/svm_helper.c change the bit CPU_INTERRUPT_VIRQ there by
a plain read-modify-write in the vCPU's thread, without the big lock. Where the main thread sets CPU_INTERRUPT_POLL for
the timer (``apic_update_irq()`` in hw/intc/apic.c) at the same moment, that is lost, and a one-shot timer does not ask
again.

The next interrupt, whichever it is, has everything delivered that is pending. So L1 gets one a second: a press of its
keyboard's shift key, which means nothing to anybody.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from vfio_intx.deadline import Deadline
from vfio_intx.errors import VfioIntxError
from vfio_intx.lab.channel import Monitor
from vfio_intx.lab.spec import socket_path

_SOCKET = "l1-nudge"
_EVERY_S = 1.0
_ANSWER_S = 30.0


def nudge_arguments(results_dir: Path) -> tuple[str, ...]:
    """QEMU's words for the monitor over which L1 is nudged; one that nobody else uses, for it has one client only."""
    return ("-qmp", f"unix:{socket_path(results_dir, _SOCKET)},server=on,wait=off")


@contextlib.contextmanager
def nudged(results_dir: Path) -> Iterator[None]:
    """While the block runs, press L1's shift key once a second. A QEMU that is not there (any more) is no error."""
    stopped = threading.Event()
    thread = threading.Thread(target=_nudge, args=(results_dir, stopped), name="nudge-l1", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()


def _nudge(results_dir: Path, stopped: threading.Event) -> None:
    while not stopped.wait(_EVERY_S):
        with contextlib.suppress(VfioIntxError, OSError), contextlib.closing(_connect(results_dir)) as monitor:
            while not stopped.wait(_EVERY_S):
                monitor.human("sendkey shift", Deadline.after("a nudge of L1", _ANSWER_S))


def _connect(results_dir: Path) -> Monitor:
    return Monitor(socket_path(results_dir, _SOCKET), Deadline.after("the monitor for nudges", _ANSWER_S))
