"""``vfio-intx lab``: boot the nested host, run a scenario in it, or look around in it."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

EPILOG = """\
needs no card and no IOMMU, but QEMU and what tools/setup of the source tree installs
exit status 3: the lab was lost, which says nothing about what was tried in it

examples:
  vfio-intx lab list
  vfio-intx lab run smoke
  vfio-intx lab run demo --json demo.json --keep demo-logs
  vfio-intx lab run qemu/defects --json defects.json -- 7.2
  vfio-intx lab shell
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``run NAME``, ``list`` and ``shell``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|list|shell")
    run = actions.add_parser("run", help="boot the lab, run a scenario in it, show its result")
    run.add_argument("name", metavar="NAME", help="as lab list shows it")
    run.add_argument("--kernel", metavar="NAME", help="L1's kernel instead of the scenario's")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    run.add_argument("--keep", type=Path, metavar="DIR", help="keep everything the lab wrote, also when all is well")
    run.add_argument("words", nargs="*", default=[], metavar="WORD", help="for the scenario, after --")
    _take_words_behind_dashes(run)
    shell = actions.add_parser("shell", help="an interactive shell in L1")
    shell.add_argument("--kernel", metavar="NAME", help="L1's kernel")
    shell.add_argument("--scenario", default="smoke", metavar="NAME", help="whose cards L1 shall have")
    actions.add_parser("list", help="the scenarios there are")


def _take_words_behind_dashes(parser: argparse.ArgumentParser) -> None:
    """Have ``--`` and what follows it work behind options, too.

    argparse gives all positional arguments their values at the first of them, so that in ``NAME --json FILE -- WORD``
    it has no place left for WORD.
    """
    parse = parser.parse_known_args

    def parse_with_words(
        words: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        end = words.index("--") if "--" in words else len(words)
        found, rest = parse(words[:end], namespace)
        found.words = [*found.words, *words[end + 1 :]]
        return found, rest

    parser.parse_known_args = parse_with_words  # type: ignore[method-assign, assignment]


def run(arguments: argparse.Namespace) -> int:
    """Do it; the exit status is 0, 1 for a scenario that failed, 3 for a lab that was lost."""
    if arguments.action == "list":
        return _list()
    if arguments.action == "shell":
        from vfio_intx.lab.play import shell

        return shell(arguments.scenario, arguments.kernel)
    return _run(arguments)


def _list() -> int:
    from vfio_intx.cli.text import screen_columns, wrapped
    from vfio_intx.lab.scenario import find, names, summary

    columns = screen_columns()
    for name in names():
        print(wrapped(f"{name:<24} {summary(find(name))}", columns, hang=25))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from vfio_intx.lab.play import Progress, play
    from vfio_intx.observe.export import WholeFile

    # Like Ctrl-C: L1 goes down and the folder of its files is put away.
    signal.signal(signal.SIGTERM, _end)
    progress = Progress(lambda text: print(text, file=sys.stderr, flush=True))
    with contextlib.ExitStack() as stack:
        # Opened before minutes are spent on a result that then has no place.
        file = None if arguments.json is None else stack.enter_context(WholeFile(arguments.json))
        played = play(arguments.name, arguments.kernel, tuple(arguments.words), progress, keep=arguments.keep)
        if played.kept is not None:
            print(f"kept in {played.kept}", file=sys.stderr)
        if played.error is not None:
            raise played.error
        _show(arguments.name, played.result)
        status = _judge(arguments.name, played.result)
        if file is not None:
            file.put(msgspec.json.format(msgspec.json.encode(played.result), indent=2) + b"\n")
    if played.not_kept is not None:
        raise played.not_kept
    return status


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _show(name: str, result: dict[str, object]) -> None:
    """The scenario's own way of showing its result where it has one, else the JSON."""
    from vfio_intx.lab.scenario import find

    show = getattr(find(name), "show", None)
    if show is not None:
        for line in show(result):
            print(line)
    else:
        print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())


def _judge(name: str, result: dict[str, object]) -> int:
    """The exit status by the scenario's own ``failures``, which are told on stderr; 0 where it has none."""
    from vfio_intx.lab.scenario import find

    failures = getattr(find(name), "failures", None)
    found = failures(result) if failures is not None else []
    for failure in found:
        print(f"does not hold: {failure}", file=sys.stderr)
    return 1 if found else 0
