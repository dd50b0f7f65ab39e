"""What every verb prints the same way: JSON with a schema, errors with a next step, a console that knows its place."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from vfio_intx.errors import InternalError, UsageError, VfioIntxError
from vfio_intx.names import escape

if TYPE_CHECKING:
    from rich.console import Console


def print_json(schema: str, payload: Mapping[str, object]) -> None:
    """Write ``{"schema": "vfio-intx/<schema>", …payload}`` to stdout, for programs.

    :param schema: name and number, such as ``scan/1``; within a number keys are only added.
    :raise KernelError: it cannot be written there.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the terminal has
    sys.stdout.write(as_json(schema, payload).decode())
    sys.stdout.flush()


def as_json(schema: str, payload: Mapping[str, object]) -> bytes:
    """What :func:`print_json` writes."""
    return msgspec.json.format(msgspec.json.encode({"schema": f"vfio-intx/{schema}", **payload}), indent=2) + b"\n"


def console(*, stderr: bool = False) -> Console:
    """A rich console: colour only on a terminal and without NO_COLOR; results on stdout, progress on stderr."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=not (sys.stderr if stderr else sys.stdout).isatty())


def print_error(program: str, error: VfioIntxError) -> int:
    """Tell of an expected error on stderr, control bytes escaped; the exit status that goes with it."""
    print(f"{program}: {escape(str(error))}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  also: {escape(note)}", file=sys.stderr)
    hint = error.hint or (f"{program} --help" if isinstance(error, UsageError) else None)
    if hint:
        print(f"  try: {escape(hint)}", file=sys.stderr)
    return error.exit_status


def print_bug(program: str, error: Exception) -> int:
    """Tell of a bug of ours without a traceback (VFIO_INTX_DEBUG=1 shows it); the exit status."""
    if os.environ.get("VFIO_INTX_DEBUG"):
        traceback.print_exception(error)
    print(f"{program}: internal error: {type(error).__name__}: {escape(str(error))}", file=sys.stderr)
    print("  try: run it again with VFIO_INTX_DEBUG=1 and report what it prints", file=sys.stderr)
    return InternalError.exit_status
