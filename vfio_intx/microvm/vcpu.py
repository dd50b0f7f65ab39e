"""The vCPU's thread: in ``KVM_RUN`` for as long as the guest and the kernel get along without us.

Some facts about stopping it. A halted vCPU sleeps inside the kernel, and the only thing that brings its thread back
is a signal. The thread blocks every signal, and only while the guest runs does KVM unblock one, so the kick ends the
run with EINTR and no handler is ever called; a kick that arrives before the run starts is not lost, because it stays
pending. And ``pthread_kill`` on a thread that has ended is undefined, so the thread never ends by itself: whatever
happened to it, it waits until :meth:`VcpuThread.stop` lets it go.
"""

from __future__ import annotations

import signal
import threading
from typing import Protocol

from vfio_intx.abi import eventfd
from vfio_intx.abi.call import close_all
from vfio_intx.abi.kvm_vcpu import (
    MMIO_READ_32,
    MMIO_WRITE_32,
    RUN_EXIT_DATA,
    RUN_EXIT_REASON,
    RUN_MMIO_ADDRESS,
    RUN_MMIO_DATA,
    RUN_MMIO_KIND,
    RUN_MMIO_KIND_MASK,
    Exit,
    decode_eoi_vector,
    decode_internal_error,
    decode_mmio,
    decode_port,
    exit_name,
    get_registers,
    run,
    set_signal_mask,
)
from vfio_intx.deadline import Deadline
from vfio_intx.errors import InternalError, VfioIntxError, WorldError
from vfio_intx.microvm.guest import FAULT_PORT

_KICK = signal.SIGUSR1
# Plain numbers: comparing with a member of an enum costs several times as much, for every exit.
_EOI, _MMIO, _IO = int(Exit.IOAPIC_EOI), int(Exit.MMIO), int(Exit.IO)
_WORD = 0xFFFF_FFFF
_ALL_SIGNALS = (1 << 64) - 1
_STOP_S = 30.0
_INTERNAL_ERRORS = {1: "KVM could not emulate an instruction", 3: "an event could not be delivered"}


class UnexpectedExit(WorldError):
    """The vCPU left the guest for a reason that nobody here handles; the VM is of no more use.

    :ivar reason: ``KVM_EXIT_…`` with its details; ``registers``: the general registers by name.
    """

    def __init__(self, reason: str, registers: dict[str, int]) -> None:
        self.reason = reason
        self.registers = registers
        shown = " ".join(f"{name}={registers[name]:#x}" for name in ("rip", "rflags", "rsp", "rax", "rbx", "rcx"))
        super().__init__(
            f"the micro VM's vCPU stopped with {reason}; {shown}",
            hint="the host's KVM cannot run the guest, or has lost it; dmesg may say more",
        )


class ExitHandler(Protocol):
    """Who answers the guest's exits. Runs in the vCPU's thread. The default is :class:`NoExits`."""

    def read(self, address: int) -> int | None:
        """A 32-bit MMIO read; None: there is nothing at that address, which stops the VM."""

    def write(self, address: int, value: int) -> bool:
        """A 32-bit MMIO write; False as above."""

    def port_write(self, port: int, value: int) -> bool:
        """A write to an I/O port; False as above."""

    def eoi(self, vector: int) -> bool:
        """``KVM_EXIT_IOAPIC_EOI``; False as above."""


class NoExits:
    """A guest that has no business in userspace: every exit stops the VM."""

    def read(self, address: int) -> int | None:
        """Nothing is there."""
        return None

    def write(self, address: int, value: int) -> bool:
        """Nothing is there."""
        return False

    def port_write(self, port: int, value: int) -> bool:
        """Nothing is there."""
        return False

    def eoi(self, vector: int) -> bool:
        """Nobody asked for it."""
        return False


class VcpuThread:
    """One vCPU running. ``exits`` counts how often the guest's business came to userspace.

    ``gone`` is an eventfd that becomes readable when the vCPU has stopped by itself; :meth:`check` then raises why.
    """

    def __init__(self, vcpu_fd: int, page: memoryview, handler: ExitHandler) -> None:
        self.exits = 0
        self.gone = eventfd.create()
        self._fd = vcpu_fd
        self._page = page
        self._words = page.cast("I")
        self._quads = page.cast("Q")
        self._handler = handler
        self._failure: VfioIntxError | None = None
        self._stopping = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._main, name="vcpu", daemon=True)
        set_signal_mask(vcpu_fd, _ALL_SIGNALS & ~(1 << _KICK - 1))

    def start(self) -> None:
        """Let the guest run."""
        self._thread.start()

    def check(self) -> None:
        """:raise UnexpectedExit: the vCPU has stopped by itself. :raise KernelError: the kernel stopped it."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take the vCPU out of the guest and end its thread; harmless if that has happened."""
        if self._thread.ident is not None and not self._released.is_set():
            self._stopping = True
            signal.pthread_kill(self._thread.ident, _KICK)
            self._released.set()
            deadline = Deadline.after("vCPU thread to end", _STOP_S)
            self._thread.join(deadline.left())
            if self._thread.is_alive():
                raise InternalError(f"the vCPU's thread did not end within {_STOP_S:g} s")
        self._words.release()
        self._quads.release()
        close_all(self.gone)
        self.gone = -1

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._loop()
        except VfioIntxError as error:
            self._failure = error
        except Exception as error:
            self._failure = InternalError(f"the vCPU's thread failed: {type(error).__name__}: {error}")
        if self._failure is not None:
            eventfd.signal(self.gone)
        self._released.wait()

    def _loop(self) -> None:
        # The guest stands still from here to the next run, so the two exits that come with interrupts are dealt with
        # here, without a call or an object more than it takes.
        place = RUN_EXIT_REASON // 4
        page, words, quads, fd, handler = self._page, self._words, self._quads, self._fd, self._handler
        read, write, eoi = handler.read, handler.write, handler.eoi
        while not self._stopping:
            if not run(fd):
                continue
            reason, known = words[place], False
            if reason == _MMIO:
                kind = quads[RUN_MMIO_KIND] & RUN_MMIO_KIND_MASK
                if kind == MMIO_WRITE_32:
                    known = write(quads[RUN_MMIO_ADDRESS], quads[RUN_MMIO_DATA] & _WORD)
                elif kind == MMIO_READ_32:
                    value = read(quads[RUN_MMIO_ADDRESS])
                    if value is not None:
                        quads[RUN_MMIO_DATA] = value
                        known = True
            elif reason == _EOI:
                known = eoi(page[RUN_EXIT_DATA])
            elif reason == _IO:
                known = self._port()
            self.exits += 1
            if not known:
                raise self._unexpected(reason)

    def _port(self) -> bool:
        port = decode_port(self._page)
        return port.is_write and port.port != FAULT_PORT and self._handler.port_write(port.port, port.value)

    def _unexpected(self, reason: int) -> UnexpectedExit:
        return UnexpectedExit(self._describe(reason), get_registers(self._fd))

    def _describe(self, reason: int) -> str:
        name = exit_name(reason)
        if reason == Exit.MMIO:
            access = decode_mmio(self._page)
            what = "write to" if access.is_write else "read of"
            return f"{name} ({access.size}-byte {what} {access.address:#x})"
        if reason == Exit.IO:
            port = decode_port(self._page)
            if port.port == FAULT_PORT:
                return f"{name} (the guest's own report of a CPU exception)"
            return f"{name} ({'write to' if port.is_write else 'read of'} port {port.port:#x})"
        if reason == Exit.INTERNAL_ERROR:
            suberror, _ = decode_internal_error(self._page)
            return f"{name} suberror {suberror} ({_INTERNAL_ERRORS.get(suberror, 'no further word from KVM')})"
        if reason == Exit.IOAPIC_EOI:
            return f"{name} (vector {decode_eoi_vector(self._page):#x})"
        return name
