"""Sentences on a terminal: broken between words, and no word of them lost; as they are where there is no terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import termios
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.cli.text import wrapped
from vfio_intx.diagnose.rules import RULES

WORDS = st.lists(st.text("abc-/'", min_size=1, max_size=12), min_size=1, max_size=40).map(" ".join)


@given(WORDS, st.integers(20, 60), st.integers(0, 8))
def test_no_word_is_broken_or_lost_and_no_line_is_too_long(text: str, columns: int, hang: int) -> None:
    out = wrapped(text, columns, hang=hang)
    assert out.split() == text.split()
    assert all(line.startswith(" " * hang) for line in out.split("\n")[1:])
    assert columns - hang < 20 or max(map(len, out.split("\n"))) <= columns


@pytest.mark.parametrize("columns", [None, 19])
def test_without_a_terminal_or_without_room_it_stays_as_it_is(columns: int | None) -> None:
    text = "one line\nanother  line\n\n" + "word " * 50
    assert wrapped(text, columns) == text


@pytest.mark.parametrize("code", RULES)
def test_the_long_text_of_a_rule_is_paragraphs_that_can_be_joined(code: str) -> None:
    assert [line for line in RULES[code].text.split("\n") if line.startswith((" ", "-", "*"))] == []


def shown(width: int, *words: str, columns: str | None = None) -> str:
    """What the program prints on a terminal of that width, with COLUMNS as the user has it or without it."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {} if columns is None else {"COLUMNS": columns}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, width))
    argv = [sys.executable, "-m", "vfio_intx", *words]
    found = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: the last one who had the other end has closed it
            while piece := os.read(ours, 1 << 16):
                found.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    subprocess.run(argv, stdout=theirs, stdin=subprocess.DEVNULL, env=environment, check=True)
    os.close(theirs)
    reader.join()
    os.close(ours)
    return found.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("width", "wanted", "columns"),
    [(60, None, 60), (100, None, 100), (100, "60", 60), (100, "0", 100), (100, "many", 100)],
)
def test_explain_fits_the_terminal_that_it_is_shown_on(width: int, wanted: str | None, columns: int) -> None:
    text = shown(width, "explain", "INTX001", columns=wanted)
    assert columns - 20 < max(map(len, text.split("\n"))) <= columns
    assert " ".join(RULES["INTX001"].text.split()) in " ".join(text.split())


@pytest.mark.parametrize("words", [("lab", "list"), ("report", "--dry-run"), ("explain",)])
def test_every_other_verb_fits_it_as_well_and_leaves_a_pipe_as_it_was(words: tuple[str, ...]) -> None:
    text = shown(80, *words)
    assert max(map(len, text.split("\n"))) <= 80
    piped = subprocess.run([sys.executable, "-m", "vfio_intx", *words], capture_output=True, text=True, check=True)
    assert len(piped.stdout.split("\n")) < len(text.split("\n"))
