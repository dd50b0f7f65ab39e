"""Real traffic through a passed-through card: pings through a NIC, lines through a serial card, counted at both ends.

Traffic runs in batches until it is told to stop, so nothing is in flight when the counts are taken: whatever was sent
and did not come back is lost.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vfio_intx.deadline import Deadline
from vfio_intx.errors import LabLost, VerifyError
from vfio_intx.lab.echoes import Echoes
from vfio_intx.lab.guests import Guest
from vfio_intx.lab.spec import UserNetwork, socket_path

#: Between two pings, and between two lines, which cost dozens of interrupts and hundreds of trapped accesses each: a
#: guest within an emulated machine needs time for its other work, too.
PAUSE_S, LINE_PAUSE_S = 0.1, 0.3

#: Seconds for an answer, after which it is lost. A machine that others keep busy may stand still for some; none is
#: waited for once the answer is there.
ANSWER_S = 30

_PORT = re.compile(r"ttyS[0-9]{1,3}")
_LINES = re.compile(r"sent ([0-9]+) received ([0-9]+)")


#: How each line that the guest writes begins.
_OPENING = b"a line of text, number"

#: How often the far end of a serial line looks whether it shall stop, and how long QEMU may leave what it sends unread.
_LOOK_S, _SEND_S = 0.2, 60.0
_LONGEST_LINE = 4096

#: Seconds for a hot-plugged serial port to become one that opens.
_PORT_S = 30


def find_port_script(sysfs: str = "/sys", dev: str = "/dev", seconds: float = _PORT_S) -> str:
    """A shell script that waits for the port of a PCI serial card, sets it to raw 115200 and prints its name.

    It ends with 1 if none opens within *seconds*. What is in between matters: while the port changes hands (a slot of
    the ISA driver becomes the card's) ``ls`` finds names that are gone when it looks at them, sysfs shows a port before
    devtmpfs has its node, and for a moment the serial core refuses opens. A wrong name is worse than none, for a
    redirection (``<>``) makes a plain file of it, which swallows all that is written and reads as empty. So only a name
    that ``stty``, which makes no files, has opened is printed, and nothing else is.
    """
    ports = f"ls -l {sysfs}/class/tty 2>/dev/null | sed -n 's,.*/pci0000:00/.*/tty/,,p' | grep ttyS"
    return f"""
        for i in $(seq {round(seconds * 10)}); do
            for port in $({ports}); do
                [ -c {dev}/$port ] && stty -F {dev}/$port raw -echo 115200 2>/dev/null && echo $port && exit 0
            done
            sleep 0.1
        done
        ls -l {sysfs}/class/tty {dev}/ttyS*
        exit 1"""


def port_name(text: str) -> str:
    """The name that :func:`find_port_script` printed. :raise VerifyError: for anything but exactly that."""
    if _PORT.fullmatch(text.strip()) is None:
        raise VerifyError(f"looking for the serial port, the guest said {text.strip()[:200]!r}")
    return text.strip()


@dataclass(frozen=True, slots=True)
class Carried:
    """What went through a card in one run, in *unit*s (``pings``, ``bytes``)."""

    sent: int
    received: int
    unit: str


class Traffic(Protocol):
    """Traffic through one card of one guest: prepare once, then start and stop as often as wanted."""

    name: str
    #: The word by which ``/proc/interrupts`` of the guest names the card's handler; set by :meth:`prepare`.
    handler: str

    def prepare(self, guest: Guest) -> None:
        """Have the guest's driver take the card. :raise VerifyError: if it does not."""

    def start(self, guest: Guest) -> None:
        """Begin to send in the background of the guest."""

    def stop(self, guest: Guest) -> Carried:
        """Let the last batch end; what went through since the start. The driver keeps its interrupt handler."""

    def release(self, guest: Guest) -> None:
        """Have the guest's driver let go of the card, so that it can be unplugged."""


def _start_loop(guest: Guest, name: str, body: str) -> None:
    """Run *body* over and over in the guest until :func:`_stop_loop`."""
    guest.check(f"rm -f /tmp/{name}.stop /tmp/{name}.done")
    script = f"while [ ! -e /tmp/{name}.stop ]; do {body}\ndone\ntouch /tmp/{name}.done"
    guest.check(f"cat > /tmp/{name}.sh <<'SCRIPT'\n{script}\nSCRIPT\nsh /tmp/{name}.sh > /tmp/{name}.log 2>&1 &")


def _stop_loop(guest: Guest, name: str) -> str:
    """Stop that loop after its current turn; what it has printed."""
    guest.check(f"touch /tmp/{name}.stop")
    turn = f"for i in $(seq 1200); do [ -e /tmp/{name}.done ] && exit 0; sleep 0.05; done; exit 1"
    guest.check(turn, seconds=ANSWER_S + 120.0)
    return guest.check(f"cat /tmp/{name}.log")


class Pings:
    """ICMP echo to the gateway of a card's network."""

    def __init__(self, network: UserNetwork) -> None:
        self._network = network
        self._echoes: Echoes | None = None
        self.name = "pings"
        self.handler = "eth"

    def prepare(self, guest: Guest) -> None:
        """See :meth:`Traffic.prepare`."""
        guest.load("e1000")
        self.handler = interface = guest.wait_interface()
        guest.check(f"ip addr add {self._network.address} dev {interface} && ip link set {interface} up")

    def start(self, guest: Guest) -> None:
        """See :meth:`Traffic.start`."""
        self._echoes = Echoes(guest)
        _start_loop(guest, self.name, f"ping -q -c 10 -i {PAUSE_S} -W {ANSWER_S} {self._network.gateway}")

    def stop(self, guest: Guest) -> Carried:
        """See :meth:`Traffic.stop`."""
        assert self._echoes is not None, "start() comes first"
        _stop_loop(guest, self.name)
        return Carried(*self._echoes.settled(ANSWER_S), "pings")

    def release(self, guest: Guest) -> None:
        """See :meth:`Traffic.release`."""
        guest.check(f"ip link set {self.handler} down")


class SerialLines:
    """Lines through a serial card; :func:`answering` at the other end sends each back in capitals."""

    def __init__(self) -> None:
        self.name = "lines"
        self.handler = "ttyS"

    def prepare(self, guest: Guest) -> None:
        """See :meth:`Traffic.prepare`. The port of a PCI card is the one whose device lies below the PCI bus."""
        self.handler = port_name(guest.check(find_port_script()))
        # The driver holds its interrupt while the port is open only, and the count goes with the handler.
        hold = f"(exec 4<> /dev/{self.handler}; exec sleep 100000) > /dev/null 2>&1 &"
        guest.check(f"{hold} echo $! > /tmp/{self.name}.holder")

    def start(self, guest: Guest) -> None:
        """See :meth:`Traffic.start`."""
        body = f"""
            [ -n "$n" ] || {{ exec 3<> /dev/{self.handler}; echo >&3; n=0; sent=0; received=0; }}
            n=$((n + 1)); line="{_OPENING.decode()} $n"; answer=
            echo "$line" >&3
            sent=$((sent + ${{#line}} + 1))
            read -r -t {ANSWER_S} answer <&3
            [ "$answer" = "$(echo "$line" | tr a-z A-Z)" ] && received=$((received + ${{#answer}} + 1))
            echo "sent $sent received $received" > /tmp/{self.name}.count
            sleep {LINE_PAUSE_S}"""
        guest.check(f"rm -f /tmp/{self.name}.count")
        _start_loop(guest, self.name, body)

    def stop(self, guest: Guest) -> Carried:
        """See :meth:`Traffic.stop`."""
        log = _stop_loop(guest, self.name)
        match = _LINES.search(guest.check(f"cat /tmp/{self.name}.count"))
        if match is None:
            raise VerifyError(f"the guest's serial traffic left no count: {log[-300:]}")
        return Carried(int(match[1]), int(match[2]), "bytes")

    def release(self, guest: Guest) -> None:
        """See :meth:`Traffic.release`."""
        guest.check(f"kill $(cat /tmp/{self.name}.holder)")


@contextlib.contextmanager
def answering(results_dir: Path, name: str) -> Iterator[None]:
    """Outside of the lab: hold the far end of a serial line while the block runs; each line is answered in capitals.

    :raise LabLost: the far end could not do its part; where the block failed by itself, that is a note on its error.
    """
    path = socket_path(results_dir, name)
    stopped, failures = threading.Event(), list[Exception]()

    def work() -> None:
        try:
            _answer(path, stopped)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, name=f"outside-{name}", daemon=True)

    def end() -> list[Exception]:
        stopped.set()
        thread.join(5)
        return failures

    thread.start()
    try:
        yield
    except BaseException as error:
        for failure in end():
            error.add_note(f"outside of the lab: {failure}")
        raise
    for failure in end():
        raise failure


def _answer(path: Path, stopped: threading.Event) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(_LOOK_S)

        def connected() -> bool:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                line.connect(str(path))
                return True
            return stopped.is_set()

        if not Deadline.after("the serial card's socket", 120).poll(connected):
            raise LabLost(f"QEMU never opened {path}")
        rest = b""
        while not stopped.is_set():
            try:
                data = line.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            rest = rest[-_LONGEST_LINE:]
            # Only what the guest itself writes is answered: a terminal that still echoes would talk to us for ever.
            # A driver that probes the port may leave bytes of its own in front.
            answers = [text[text.index(_OPENING) :].upper() + b"\n" for text in whole if _OPENING in text]
            if not _send(line, b"".join(answers), path):
                return


def _send(line: socket.socket, data: bytes, path: Path) -> bool:
    """Send it all, to a QEMU that may be busy for a while; False if it has ended."""
    line.settimeout(_SEND_S)
    try:
        line.sendall(data)
    except TimeoutError as error:
        raise LabLost(f"QEMU read nothing from {path} for {_SEND_S:g} s") from error
    except OSError:
        return False
    finally:
        line.settimeout(_LOOK_S)
    return True
