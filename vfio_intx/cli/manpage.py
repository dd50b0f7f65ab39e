"""``tools/gen-man``: the manual page, walked off the parsers. Not a verb: it belongs to the source tree.

Only what no parser knows is written here: statuses, variables, files and a longer example. The usage lines are made
here too, because argparse words them differently from one Python to the next, and the page has to come out the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from vfio_intx import __version__
from vfio_intx.cli.main import VERBS, parser_of

ABOUT = """\
A PCI card without MSI signals by a level interrupt, INTx. When such a card is passed through to a KVM guest, the host
has to mask the line at each interrupt, raise it in the guest, learn of the guest's EOI, and only then unmask. vfio-intx
wires that loop, proves which way it runs, times every step of it, says which step broke, and mends it.

A BDF is written 0000:05:00.0, 05:00.0, pci_0000_05_00_0 or pci/0000:05:00.0. Reading verbs have --json, with a schema
whose number stays while keys are only added; changing verbs have --dry-run. Results go to standard output, all else to
standard error. Errors say what to try next.
"""

STATUSES = (
    ("0", "done"),
    ("1", "failed: the machine or a VM is in the way, and the message says what, and what to do next"),
    ("2", "usage: nothing was touched"),
    ("3", "the lab's machine was lost, which says nothing about what was tried in it"),
    ("70", "a bug of vfio-intx"),
    ("130", "ended by Ctrl-C; what was begun was undone, or the message says what is left"),
    ("141", "the reader of standard output went away"),
    ("check", "0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN, as monitoring plugins have it; usage errors are 3"),
)

VARIABLES = (
    ("VFIO_INTX_STATE", "where first drivers are recorded, in place of /var/lib/vfio-intx; --state-dir wins"),
    ("VFIO_INTX_DEBUG", "if not empty, a bug of ours is told with its traceback"),
    ("VFIO_INTX_CACHE", "where the lab keeps kernels and built QEMUs, in place of ~/.cache/vfio-intx"),
    ("VFIO_INTX_QEMU", "the QEMU of the lab's guests, in place of qemu-system-x86_64"),
    ("NO_COLOR", "if not empty, no colours"),
)

FILES = (
    ("/var/lib/vfio-intx/BDF.record", "the first driver and driver_override of a function; removed by restore"),
    ("/etc/udev/rules.d/70-vfio-intx-BDF.rules", "what persist installs"),
    (
        "/sys/kernel/tracing/instances/vfio-intx-*",
        "a trace's private buffer; left ones are removed by trace and restore",
    ),
    ("~/.cache/vfio-intx", "the lab's cache ($XDG_CACHE_HOME is heeded)"),
    ("vfio-intx-report.tar.gz", "what report writes, into the working directory"),
)

SESSION = (
    ("Give a card to a running VM and see by which way its interrupts run:", (
        "vfio-intx check 05:00.0",
        "vfio-intx bind 05:00.0",
        "vfio-intx attach 05:00.0 --qmp /run/vm.qmp",
        "vfio-intx status",
    )),
    ("A card in a guest has stopped working:", (
        "vfio-intx status --watch",
        "vfio-intx trace 05:00.0 --seconds 10",
        "vfio-intx kick 05:00.0",
        "vfio-intx report",
    )),
    ("Take it out again, and give everything back to the host:", (
        "vfio-intx detach 05:00.0 --qmp /run/vm.qmp",
        "vfio-intx restore",
    )),
)  # fmt: skip


def main() -> int:
    """Print the page."""
    sys.stdout.write(page())
    return 0


def page() -> str:
    """The manual page in the man(7) language."""
    return "\n".join([*_head(), *_verbs(), *_tail()]) + "\n"


def _head() -> Iterator[str]:
    yield '.\\" Made by tools/gen-man from the parsers; do not edit.'
    yield f'.TH VFIO\\-INTX 8 "" "vfio\\-intx {__version__}" "System Administration"'
    yield from (".SH NAME", "vfio\\-intx \\- wire, prove, time and mend level\\-triggered VFIO INTx in KVM guests")
    yield from (".SH SYNOPSIS", ".B vfio\\-intx", ".I VERB", "[\\fIBDF\\fR] [\\fIoptions\\fR]")
    yield from (".SH DESCRIPTION", *_prose(ABOUT))


def _verbs() -> Iterator[str]:
    yield ".SH VERBS"
    for verb, (_, words) in VERBS.items():
        module, parser = parser_of(verb)
        yield from (f".SS {_text(verb)}", *_usage(parser), ".PP", _text(f"{words[0].upper()}{words[1:]}."))
        yield from _arguments(parser)
        for part in _parts(parser):
            yield from (".PP", *_usage(part), *_arguments(part))
        yield from _epilog(module.EPILOG)


def _parts(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _usage(parser: argparse.ArgumentParser) -> Iterator[str]:
    exclusive = {action: group for group in parser._mutually_exclusive_groups for action in group._group_actions}
    yield f".B {_text(parser.prog)}"
    for action in sorted(_shown(parser), key=lambda action: not action.option_strings):
        group = exclusive.get(action)
        if group is None:
            word = _form(action)
            # argparse calls "any number of" required where no default is given.
            yield word if action.required and action.nargs != "*" else f"[{word}]"
        elif action is group._group_actions[0]:
            words = " | ".join(_form(one) for one in group._group_actions)
            yield f"({words})" if group.required else f"[{words}]"


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def _form(action: argparse.Action) -> str:
    """An argument, as in the usage and over its paragraph: literal words bold, those to be replaced italic."""
    if isinstance(action, argparse._SubParsersAction):
        return f"\\fB{_text(str(action.metavar))}\\fR"
    name = str(action.metavar or action.dest.upper())
    if action.choices:
        name = "|".join(map(str, action.choices))
    if not action.option_strings:
        return f"\\fI{_text(name)}\\fR" + (" ..." if action.nargs == "*" else "")
    option = f"\\fB{_text(action.option_strings[-1])}\\fR"
    return option if action.nargs == 0 else f"{option} \\fI{_text(name)}\\fR"


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in _shown(parser):
        if not isinstance(action, argparse._SubParsersAction):
            yield from (".TP", _form(action), _text(str(action.help)))


def _epilog(epilog: str) -> Iterator[str]:
    notes, _, examples = epilog.rpartition("examples:\n")
    for line in notes.strip().splitlines():
        yield from (".PP", _text(f"{line[0].upper()}{line[1:]}."))
    yield from _block(examples.split("\n"))


def _tail() -> Iterator[str]:
    for title, rows in (("EXIT STATUS", STATUSES), ("ENVIRONMENT", VARIABLES), ("FILES", FILES)):
        yield f".SH {title}"
        for name, words in rows:
            yield from (".TP", f".B {_text(name)}", _text(words))
    yield ".SH EXAMPLES"
    for words, commands in SESSION:
        yield from (".PP", _text(words), *_block(commands))
    yield from (".SH SEE ALSO", ".BR lspci (8),", ".BR driverctl (8),", ".BR virsh (1),", ".BR trace\\-cmd (1)")


def _block(commands: Sequence[str]) -> Iterator[str]:
    lines = [_text(line.strip()) for line in commands if line.strip()]
    yield from (".PP", ".nf", ".RS 4", *lines, ".RE", ".fi")


def _prose(text: str) -> Iterator[str]:
    for paragraph in text.strip().split("\n\n"):
        yield from (".PP", *map(_text, paragraph.splitlines()))


def _text(text: str) -> str:
    """Words of ours as words of roff: no character of them is an order to it, and a hyphen can be copied as a minus."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain


if __name__ == "__main__":
    sys.exit(main())
