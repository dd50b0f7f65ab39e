"""A guest (L2) in the lab: a Debian kernel on busybox under ``qemu-system-x86_64 -accel kvm``, for use inside L1."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vfio_intx.deadline import Deadline
from vfio_intx.errors import LabLost, PeerGone, PeerTimeout, VerifyError
from vfio_intx.lab import kernels
from vfio_intx.lab.channel import Answer, Monitor, Shell
from vfio_intx.lab.initramfs import initramfs_for

#: Names the QEMU program of guests, where none is given in the options (a patched build, say).
QEMU_VARIABLE = "VFIO_INTX_QEMU"

#: Seconds from QEMU's start to the guest's shell; on two cores under TCG it takes some 6.
BOOT_S = 300.0
COMMAND_S = 120.0
#: For a killed QEMU to have given its devices back to the kernel, resets of a card included.
END_S = 60.0

#: A guest must not outlive the program that started it, not even one killed with SIGKILL: it would hold its devices.
_DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")

#: The line "10:  5  IO-APIC  10-fasteoi  eth0" of /proc/interrupts; one column a CPU.
_INTERRUPT = re.compile(r"\s*(?P<irq>[0-9]+):(?P<counts>(?:\s+[0-9]+)+)\s+(?P<rest>.*)")


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """How a guest is made.

    :ivar kernel: a name of :data:`vfio_intx.lab.kernels.NAMES`; empty for L1's own.
    :ivar machine: ``pc`` (hot-plug by ACPI on the root bus) or ``q35``.
    :ivar irqchip: ``on`` or ``split``: QEMU's ``kernel-irqchip``.
    :ivar kernel_arguments: such as ``noapic`` (the PIC serves INTx) or ``pci=nomsi``.
    :ivar qemu: the program; empty for VFIO_INTX_QEMU or ``qemu-system-x86_64``.
    :ivar extra: further words for QEMU, before which nothing of ours is undone.
    """

    kernel: str = ""
    machine: str = "pc"
    irqchip: str = "on"
    memory_mib: int = 256
    cpus: int = 1
    kernel_arguments: tuple[str, ...] = ("pci=nomsi",)
    qemu: str = ""
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Interrupt:
    """A line of the guest's ``/proc/interrupts``. ``count`` is over all CPUs; ``rest`` is chip, pin, trigger, names."""

    irq: int
    count: int
    rest: str


def guest_argv(options: GuestOptions, folder: Path, image: Path, initramfs: Path) -> list[str]:
    """QEMU's command line for a guest whose sockets lie in *folder*. Pure, but for VFIO_INTX_QEMU."""
    program = options.qemu or os.environ.get(QEMU_VARIABLE) or "qemu-system-x86_64"
    words = ["console=ttyS0", "quiet", "loglevel=4", "mitigations=off", "panic=-1", "tsc=reliable", "no_timer_check"]
    argv = [program, "-accel", "kvm", "-machine", f"{options.machine},kernel-irqchip={options.irqchip}", "-cpu", "host"]
    argv += ["-m", str(options.memory_mib), "-smp", str(options.cpus), "-display", "none", "-nodefaults", "-no-reboot"]
    argv += ["-kernel", str(image), "-initrd", str(initramfs), "-append", " ".join((*words, *options.kernel_arguments))]
    argv += ["-chardev", f"file,id=log,path={folder}/console", "-serial", "chardev:log"]
    argv += ["-chardev", f"socket,id=shell,path={folder}/shell,server=on,wait=off", "-serial", "chardev:shell"]
    for name in ("qmp", "witness"):
        argv += ["-qmp", f"unix:{folder}/{name},server=on,wait=off"]
    return [*argv, *options.extra]


def parse_interrupts(text: str) -> dict[int, Interrupt]:
    """``/proc/interrupts`` by number; the named lines (NMI and so on) are left out."""
    found = {}
    for line in text.splitlines():
        if match := _INTERRUPT.fullmatch(line):
            irq = int(match["irq"])
            found[irq] = Interrupt(irq, sum(map(int, match["counts"].split())), " ".join(match["rest"].split()))
    return found


class Guest:
    """A running guest.

    ``qmp`` is the path of a monitor that nobody uses: it is for the program under test. The lab's own monitor is
    :attr:`monitor`. ``pid`` is QEMU's. Make one with :meth:`start`, as a context manager.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, argv: list[str]) -> None:
        self._process = process
        self.folder = folder
        self.argv = argv
        self.pid = process.pid
        self.qmp = folder / "qmp"
        self._shell: Shell | None = None
        self._monitor: Monitor | None = None

    @classmethod
    @contextlib.contextmanager
    def start(cls, options: GuestOptions = GuestOptions(), *, wait: bool = True) -> Iterator[Guest]:
        """Start QEMU and (if *wait*) wait for the guest's shell; at the end of the block it is killed and reaped.

        :raise LabLost: if the guest does not come up, with the last lines of its console and of QEMU.
        """
        kernel = kernels.find(options.kernel or os.environ.get("VFIO_INTX_INSIDE_L1") or kernels.DEFAULT)
        if kernel is None:
            raise LabLost("the guest's kernel is not in the cache", hint="vfio-intx lab run fetches it before it boots")
        with tempfile.TemporaryDirectory(prefix="guest-", dir="/run") as name:
            folder = Path(name)
            argv = guest_argv(options, folder, kernel.image, initramfs_for(kernel))
            with (folder / "stderr").open("wb") as log:
                process = subprocess.Popen([*_DIE_WITH_US, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            guest = cls(process, folder, argv)
            try:
                if wait:
                    guest.wait_ready()
                yield guest
            finally:
                guest.stop()

    def wait_ready(self, seconds: float = BOOT_S) -> None:
        """Wait until the guest's shell reads commands, after a reset too. :raise LabLost: if it does not."""
        if self._shell is not None:
            self._shell.close()
        deadline = Deadline.after("the guest's boot", seconds)
        try:
            self._shell = Shell(self.folder / "shell", deadline)
            self._shell.wait_ready(deadline)
        except (PeerGone, PeerTimeout) as error:
            lost = LabLost(f"the guest did not come up: {error}")
            for note in self.last_words():
                lost.add_note(note)
            raise lost from error

    @property
    def monitor(self) -> Monitor:
        """The lab's own monitor, connected at first use."""
        if self._monitor is None:
            self._monitor = Monitor(self.folder / "witness", self._deadline("the guest's monitor"))
        return self._monitor

    def execute(self, command: str, **arguments: object) -> object:
        """A QMP command on the lab's own monitor; its ``return``. :raise PeerRefused: in QEMU's words."""
        return self.monitor.execute(command, self._deadline(f"QMP {command}"), **arguments)

    def human(self, line: str) -> str:
        """A line of QEMU's human monitor (``info irq``, ``info pic``); its output."""
        return self.monitor.human(line, self._deadline(f"monitor line {line}"))

    def run(self, command: str, seconds: float = COMMAND_S) -> Answer:
        """Run a shell command in the guest, which must have an end of its own, well before *seconds* are over.

        :raise LabLost: if the guest does not answer by then. Its shell is on a serial port of QEMU's, which has nothing
            to do with what is passed through: a guest that is silent there has no CPU time, or has crashed.
        """
        if self._shell is None:
            raise VerifyError("the guest was started without waiting for its shell: call wait_ready() first")
        try:
            return self._shell.run(command, Deadline.after(f"guest command {command[:60]!r}", seconds))
        except PeerTimeout as error:
            lost = LabLost(f"the guest hangs: {error}")
            for note in self.last_words():
                lost.add_note(note)
            raise lost from error

    def check(self, command: str, seconds: float = COMMAND_S) -> str:
        """Like :meth:`run`, but the output alone. :raise VerifyError: if the status is not 0."""
        answer = self.run(command, seconds)
        if answer.status != 0:
            raise VerifyError(f"in the guest, {command!r} ended with {answer.status}: {answer.text.strip()[-400:]}")
        return answer.text

    def load(self, module: str) -> None:
        """Load a driver of :data:`vfio_intx.lab.initramfs.GUEST_MODULES` and what it needs; again is no error."""
        self.check(f"load {module}")

    def interrupts(self) -> dict[int, Interrupt]:
        """The guest's ``/proc/interrupts`` by number."""
        return parse_interrupts(self.check("cat /proc/interrupts"))

    def interrupt_count(self, word: str) -> int:
        """Interrupts so far on the lines whose text (chip, pin, trigger, handler names) holds *word*."""
        return sum(line.count for line in self.interrupts().values() if word in line.rest)

    def pci_devices(self) -> dict[str, str]:
        """The guest's PCI functions: BDF -> ``vendor:device`` in hexadecimal."""
        text = self.check("cd /sys/bus/pci/devices && for d in *; do echo $d $(cat $d/vendor) $(cat $d/device); done")
        rows = (line.split() for line in text.splitlines())
        return {bdf: f"{vendor[2:]}:{device[2:]}" for bdf, vendor, device in rows}

    def wait_interface(self, seconds: float = 180.0) -> str:
        """The name of a network interface other than ``lo``, waited for. :raise PeerTimeout: if none comes."""
        found = "for i in $(seq 600); do ls /sys/class/net | grep -qv lo && break; sleep 0.05; done"
        self.check(found, seconds)
        names = [name for name in self.check("ls /sys/class/net").split() if name != "lo"]
        if not names:
            raise PeerTimeout("the guest", "a network interface", seconds)
        return names[0]

    def last_words(self) -> list[str]:
        """The ends of the guest's console and of QEMU's own output, for errors."""
        words = []
        for name in ("console", "stderr"):
            path = self.folder / name
            text = path.read_text("utf-8", "replace") if path.exists() else ""
            words += [f"{name}: {line}" for line in text.splitlines()[-6:]]
        return words

    def alive(self) -> bool:
        """Whether QEMU runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Kill QEMU and reap it; the host side of its devices is then released. Calling it again does nothing.

        :raise LabLost: if it is still there a minute later.
        """
        for channel in (self._shell, self._monitor):
            if channel is not None:
                channel.close()
        self._shell = self._monitor = None
        if self._process.poll() is None:
            self._process.kill()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired as error:
            raise LabLost(
                f"QEMU, process {self.pid}, outlives its kill by {END_S:g} s: it hangs in the kernel", hint="see dmesg"
            ) from error

    def _deadline(self, name: str) -> Deadline:
        return Deadline.after(name, COMMAND_S)
