"""Sentences on a terminal: broken between words, and no word of them lost; as they are where there is no terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

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


@pytest.mark.parametrize("columns", [60, 100])
def test_explain_fits_the_terminal_that_it_is_shown_on(columns: int) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    argv = [sys.executable, "-m", "vfio_intx", "explain", "INTX001"]
    done = subprocess.run(argv, stdout=theirs, stdin=subprocess.DEVNULL, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode().replace("\r\n", "\n")
    os.close(ours)
    assert done.returncode == 0
    assert columns - 20 < max(map(len, shown.split("\n"))) <= columns
    assert " ".join(RULES["INTX001"].text.split()) in " ".join(shown.split())
