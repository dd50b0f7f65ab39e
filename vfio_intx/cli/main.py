"""The command line: find the verb, parse its arguments, run it, turn what it raised into words and a status.

Only the module of the verb that was named is imported, so that ``--version`` and ``--help`` start fast.
A verb's module has ``add_arguments(parser)``, ``run(arguments) -> int`` (the exit status) and ``EPILOG`` (its needs and
examples, for the end of its help), and may have a ``USAGE_STATUS`` of its own, and an ``unknown_line(why)`` to be
printed on stdout where the command line is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn

from vfio_intx import __version__

#: verb -> (module under vfio_intx.cli, one line of help), in the order --help lists them.
VERBS: dict[str, tuple[str, str]] = {
    "scan": ("scan", "functions with an INTx pin, and what would happen in a guest"),
    "check": ("check", "would it work? preflight for one function, as a monitoring plugin"),
    "explain": ("explain", "what the code of a finding means"),
    "bind": ("bind", "give a function to vfio-pci"),
    "unbind": ("unbind", "take a function from vfio-pci and leave it without a driver"),
    "restore": ("restore", "bring a function, or all, back to the first driver"),
    "persist": ("persist", "a udev rule that gives a function to vfio-pci at every boot"),
    "attach": ("attach", "add a function to a running VM with a scheme, and verify it"),
    "detach": ("detach", "take a function out of a running VM"),
    "status": ("status", "lines in running VMs: scheme, proof, counters"),
    "switch": ("switch", "change the scheme of a live line (a QEMU with qemu-patches/)"),
    "trace": ("trace", "time every stage of every interrupt of one line"),
    "tap": ("tap", "stand in a live line's EOI path, count (a QEMU with qemu-patches/)"),
    "kick": ("kick", "reopen a line that is masked and has no one left to unmask it"),
    "selftest": ("selftest", "whether this host's KVM can carry an INTx line; /dev/kvm is enough"),
    "bench": ("bench", "the schemes side by side on this host's KVM, and the ceiling"),
    "lab": ("lab", "the nested host: run a scenario in it, list them, or a shell"),
    "report": ("report", "one archive with all that a bug report needs, secrets left out"),
}

_STATUS_USAGE = 2
#: Verbs that read and print, and have nothing to tidy up when they are done: what ``status`` opened is closed by then.
_PURE_READERS = frozenset({"scan", "check", "explain", "status"})
_STATUS_INTERRUPTED = 130
_STATUS_PIPE = 141


_LEGEND = """\
A BDF is 0000:05:00.0 or 05:00.0. A VM is named by --qmp PATH, --pid PID,
--libvirt DOMAIN or --proxmox VMID. Reading verbs have --json, changing verbs
--dry-run. Changing anything needs root.

exit status: 0 done, 1 failed, 2 usage, 3 the lab was lost, 70 a bug of ours,
130 interrupted; check: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN

vfio-intx VERB --help: options and examples; man vfio-intx: all of them
vfio-intx --version"""


class _Formatter(argparse.HelpFormatter):
    """As argparse's own, which loads shutil and four compressors to learn how wide the terminal is."""

    def __init__(self, prog: str) -> None:
        try:
            columns = int(os.environ.get("COLUMNS", 0)) or os.get_terminal_size().columns
        except (OSError, ValueError):
            columns = 0
        super().__init__(prog, width=(columns if columns > 0 else 80) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        # Of several lines the indented ones are commands, to be copied as they are.
        return "\n".join(
            line if not line or line.startswith(" ") else super(_Formatter, self)._fill_text(line, width, indent)
            for line in text.rstrip().split("\n")
        )


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviated options, whose errors name the next step."""

    def __init__(self, prog: str, description: str = "", verb: ModuleType | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=getattr(verb, "EPILOG", ""),
            allow_abbrev=False,
            formatter_class=_Formatter,
        )
        self._usage_status = int(getattr(verb, "USAGE_STATUS", _STATUS_USAGE))
        self._usage_line: Callable[[str], str] | None = getattr(verb, "unknown_line", None)

    def error(self, message: str) -> NoReturn:
        if self._usage_line is not None:
            print(self._usage_line(message))
        self.exit(self._usage_status, f"{self.prog}: {message}\n  try: {self.prog} --help\n")


def _overview() -> str:
    lines = ["usage: vfio-intx VERB [BDF] [options]", "", "verbs:"]
    lines += [f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join([*lines, "", _LEGEND])


def main(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name); the exit status. Errors are printed to stderr."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        if argv[1:] and argv[1] in VERBS:
            return main([argv[1], "--help"])
        return _guarded("vfio-intx", lambda: _say(_overview(), 0 if argv else 2))
    if argv[0] in ("-V", "--version"):
        return _guarded("vfio-intx", lambda: _say(f"vfio-intx {__version__}", 0))
    if argv[0] not in VERBS:
        print(f"vfio-intx: unknown verb {argv[0][:32]!r}\n  try: vfio-intx --help", file=sys.stderr)
        return 2
    module, parser = parser_of(argv[0])
    return _guarded(parser.prog, lambda: int(module.run(parser.parse_args(argv[1:]))))


def parser_of(verb: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """A verb's module and its parser; what prints the help, the man page and the completion all read this one."""
    name, words = VERBS[verb]
    module = importlib.import_module(f"vfio_intx.cli.{name}")
    parser = _Parser(f"vfio-intx {verb}", words, module)
    module.add_arguments(parser)
    return module, parser


def _say(text: str, status: int) -> int:
    print(text)
    return status


def _guarded(program: str, action: Callable[[], int]) -> int:
    """Run it; every way out is a status and, where it failed, a message without a traceback."""
    try:
        status = _finished(action)
        if sys.stdout is not None:
            # Here, where it can still be told that there was no room; the interpreter's own flush comes too late.
            sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        from vfio_intx.names import escape

        print(f"{program}: interrupted", file=sys.stderr)
        for note in getattr(stop, "__notes__", ()):
            print(f"  also: {escape(note)}", file=sys.stderr)
        return _STATUS_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away. Nobody is left who would want to hear of it.
        return _STATUS_PIPE
    except Exception as error:
        return _told(program, error)


def _finished(action: Callable[[], int]) -> int:
    """The status of an action that may also end by exiting, as argparse does."""
    try:
        return action()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


def _told(program: str, error: Exception) -> int:
    """Say what went wrong; the status. Where not even that can be written, the status is all there is."""
    from vfio_intx.cli.output import print_bug, print_error
    from vfio_intx.errors import VfioIntxError

    try:
        return print_error(program, error) if isinstance(error, VfioIntxError) else print_bug(program, error)
    except OSError:
        return error.exit_status if isinstance(error, VfioIntxError) else 1


def console_entry() -> NoReturn:
    """The ``vfio-intx`` program."""
    from vfio_intx.cli import stdout

    stdout.install()
    try:
        status = main(sys.argv[1:])
        if sys.argv[1:2] and sys.argv[1] in _PURE_READERS:
            # main has flushed, and nothing else is open: taking the interpreter apart would cost a tenth of it.
            os._exit(status)
        sys.exit(status)
    except KeyboardInterrupt:  # while the verb's module was being loaded
        print("vfio-intx: interrupted", file=sys.stderr)
        sys.exit(_STATUS_INTERRUPTED)
