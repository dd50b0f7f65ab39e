"""Plain text for verbs that must start fast: rich alone costs more than all the rest of ``scan``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines with their columns aligned, two spaces apart, without trailing blanks."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def screen_columns() -> int | None:
    """How wide the terminal is that stdout goes to, or as COLUMNS has it; None where that is a pipe or a file."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return None
    wanted = os.environ.get("COLUMNS", "")
    return (int(wanted) if wanted.isascii() and wanted.isdecimal() else 0) or columns or None


def wrapped(text: str, columns: int | None, *, hang: int = 0) -> str:
    """Sentences broken between words for so many columns, every line but a paragraph's first *hang* blanks in.

    Lines are joined within a paragraph; one that is indented by more than its first and a command to be copied do not
    belong in here. Without *columns*, and where they leave no room worth it, *text* as it is.
    """
    if columns is None or columns - hang < 20 or (len(text) <= columns and "\n" not in text):
        return text
    import textwrap

    paragraphs = (" ".join(part.split("\n")) for part in text.split("\n\n"))
    return "\n\n".join(
        textwrap.fill(part, columns, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False)
        for part in paragraphs
    )
