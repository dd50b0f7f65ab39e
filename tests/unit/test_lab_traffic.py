"""The far end of the lab's serial line answers what the guest says while QEMU lives, and never fails in secret."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vfio_intx.deadline import Deadline
from vfio_intx.errors import LabLost, VerifyError
from vfio_intx.lab.spec import socket_path
from vfio_intx.lab.traffic import answering


@contextmanager
def qemu(folder: Path) -> Iterator[socket.socket]:
    """QEMU's end of the line, while somebody answers at the other."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path(folder, "serial")))
        listener.listen(1)
        listener.settimeout(60)
        with answering(folder, "serial"):
            ours, _ = listener.accept()
            with ours:
                ours.setblocking(False)
                yield ours


def talk(line: socket.socket, said: bytes, last: bytes) -> bytes:
    """Say it all and hear what comes, up to the answer *last*."""
    heard = bytearray()
    deadline = Deadline.after("the answer", 80)
    while not heard.endswith(last) and not deadline.passed():
        readable, writable, _ = select.select([line], [line] if said else [], [], 0.5)
        if readable:
            data = line.recv(1 << 16)
            assert data, "the far end has hung up"
            heard += data
        if writable:
            said = said[line.send(said) :]
    return bytes(heard)


def lines(count: int) -> bytes:
    return b"".join(b"a line of text, number %d\n" % number for number in range(count))


def test_only_the_guests_own_lines_are_answered(tmp_path: Path) -> None:
    with qemu(tmp_path) as line:
        answer = b"A LINE OF TEXT, NUMBER 1\n"
        assert talk(line, b"A LINE OF TEXT, NUMBER 0\n\0\xffa line of text, number 1\n", answer) == answer


def test_a_qemu_that_reads_nothing_for_a_while_gets_every_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfio_intx.lab.traffic._LOOK_S", 0.05)
    said = lines(100_000)
    with qemu(tmp_path) as line:
        # Say as much as fits while nothing is read: until the far end has waited for us for longer than it looks away.
        sent = 0
        while select.select([], [line], [], 0.3)[1]:
            sent += line.send(said[sent : sent + (1 << 16)])
        assert sent < len(said), "the far end has stopped reading, because we do"
        assert talk(line, said[sent:], said[-40:].upper()) == said.upper()


def test_a_qemu_that_ends_ends_the_answering(tmp_path: Path) -> None:
    with qemu(tmp_path) as line:
        line.close()
        ends = Deadline.after("the answering", 60)
        assert ends.poll(lambda: all(thread.name != "outside-serial" for thread in threading.enumerate()))


def read_nothing(folder: Path, then: Exception | None = None) -> None:
    """A QEMU that speaks and does not hear until the far end has given up; *then* is what the lab makes of that."""
    with qemu(folder) as line:
        with suppress(BrokenPipeError, ConnectionResetError):
            while select.select([], [line], [], 60)[1]:
                line.send(lines(1000))
        if then is not None:
            raise then


def test_a_far_end_that_failed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_intx.lab.traffic._SEND_S", 0.2)
    with pytest.raises(LabLost, match="QEMU read nothing"):
        read_nothing(tmp_path)


def test_a_far_end_that_failed_is_a_note_where_the_lab_failed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfio_intx.lab.traffic._SEND_S", 0.2)
    with pytest.raises(VerifyError) as caught:
        read_nothing(tmp_path, VerifyError("the bytes do not match"))
    assert "QEMU read nothing" in caught.value.__notes__[0]
