"""Standard output whose failures are told apart from every other: a full disk there is nobody's bug."""

from __future__ import annotations

import io
import os
import sys


class Stdout(io.TextIOWrapper):
    """The interpreter's own stream, but what the kernel refuses is a :class:`~vfio_intx.errors.KernelError`.

    A reader that went away stays a BrokenPipeError. Either way nothing more is written: what is still buffered would
    fail once more when the interpreter ends, and be told once more.
    """

    def write(self, text: str) -> int:
        """As the base class. :raise KernelError: see errno."""
        try:
            return super().write(text)
        except OSError as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        """As the base class. :raise KernelError: see errno."""
        try:
            super().flush()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> Exception:
        from vfio_intx.errors import KernelError

        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            return error
        hint = "make room where standard output goes, or send it elsewhere; what was done stays done"
        return KernelError("write", "standard output", error.errno or 0, hint=hint)


def install() -> None:
    """Put it in the place of ``sys.stdout``, with the same settings.

    But a character that the encoding has not becomes an escape, as on standard error: it is no reason to say nothing.

    A program that was started without one of the three standard streams gets ``/dev/null`` for it, as glibc does for
    privileged ones: the next file opened would have its number, and what is printed would go there.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    found = sys.stdout
    if isinstance(found, io.TextIOWrapper) and not isinstance(found, Stdout):
        encoding, by_line, at_once = found.encoding, found.line_buffering, found.write_through
        sys.stdout = Stdout(found.detach(), encoding, "backslashreplace", None, by_line, at_once)
