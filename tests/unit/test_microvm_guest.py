"""The guest's source, its image and its mailbox say the same."""

from __future__ import annotations

import mmap
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vfio_intx.microvm import guest
from vfio_intx.microvm.guest import GuestParameters, Pin, Quiet, Word

SOURCE = Path(guest.__file__).with_name("line.S")


def test_source_and_image_agree(tmp_path: Path) -> None:
    if not shutil.which("as") or not shutil.which("ld"):
        pytest.skip("no assembler here: apt-get install binutils")
    built, image = tmp_path / "line.o", tmp_path / "line.bin"
    subprocess.run(["as", "--32", "-o", built, SOURCE], check=True)
    link = ["ld", "-m", "elf_i386", "-Ttext", hex(guest.CODE), "-e", "start", "--oformat", "binary"]
    subprocess.run([*link, "-o", image, built], check=True)
    assert image.read_bytes() == guest.image(), f"build it again as the head of {SOURCE.name} says"


def test_the_mailbox_is_the_sources() -> None:
    places = {
        name: int(value, 16) for name, value in re.findall(r"\.set\s+(\w+),\s+(0x20[0-9a-f]{2})\b", SOURCE.read_text())
    }
    assert places == {word.name: guest.MAILBOX + 4 * word for word in Word}


def test_the_constants_are_the_sources() -> None:
    text = SOURCE.read_text()
    for name, value in (
        ("READY_MARK", guest.READY_MARK),
        ("DOORBELL_VECTOR", guest.DOORBELL_VECTOR),
        ("FAULT_PORT", guest.FAULT_PORT),
    ):
        assert int(re.findall(rf"\.set\s+{name},\s+(0x[0-9a-f]+)", text)[0], 16) == value


def test_the_image_leaves_the_mailbox_alone() -> None:
    assert guest.CODE + len(guest.image()) <= guest.MAILBOX


def test_parameters_arrive_in_the_mailbox() -> None:
    memory = mmap.mmap(-1, guest.MEMORY_SIZE)
    mailbox = guest.load(memory, GuestParameters(10, Pin.PIC, Quiet.READ, 0xE000_00C0, level=True))
    try:
        assert mailbox[Word.CHIP] == 1
        assert mailbox[Word.VECTOR] == 0x2A
        assert mailbox[Word.STATUS] == 0xE000_00C0
        assert memory[guest.CODE : guest.CODE + 4] == guest.image()[:4]
    finally:
        mailbox.release()
        memory.close()


def test_an_edge_pin_is_only_programmed_on_request() -> None:
    memory = mmap.mmap(-1, guest.MEMORY_SIZE)
    for level, expected in ((True, 0x8040), (False, 0x40)):
        mailbox = guest.load(memory, GuestParameters(20, level=level))
        assert mailbox[Word.REDIRECTION] == expected
        mailbox.release()
    memory.close()


@pytest.mark.parametrize(("gsi", "pin"), [(24, Pin.IOAPIC), (-1, Pin.IOAPIC), (16, Pin.PIC), (2, Pin.PIC)])
def test_a_gsi_that_is_no_pin_is_refused(gsi: int, pin: Pin) -> None:
    with pytest.raises(ValueError, match="is no pin"):
        GuestParameters(gsi, pin)
