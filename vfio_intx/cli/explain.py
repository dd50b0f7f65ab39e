"""``vfio-intx explain INTX001``: what a finding's code means, at length."""

from __future__ import annotations

import argparse

from vfio_intx.cli.text import screen_columns, wrapped
from vfio_intx.diagnose.rules import RULES
from vfio_intx.diagnose.rules.rule import Rule
from vfio_intx.errors import UsageError

EPILOG = """\
examples:
  vfio-intx explain
  vfio-intx explain INTX001
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument(
        "code", metavar="CODE", nargs="?", help="a code such as INTX001; without one, all codes with their titles"
    )
    parser.add_argument("--json", action="store_true", help="print vfio-intx/explain/1 instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Print one rule, or the list of all."""
    chosen = [_rule(arguments.code)] if arguments.code else list(RULES.values())
    if arguments.json:
        from vfio_intx.cli.output import print_json

        print_json("explain/1", {"rules": [_payload(rule) for rule in chosen]})
    elif arguments.code:
        print(_text(chosen[0]))
    else:
        columns = screen_columns()
        for rule in chosen:
            print(wrapped(f"{rule.code}  {rule.stage.value:<9}  {rule.title}", columns, hang=21))
    return 0


def _rule(code: str) -> Rule:
    try:
        return RULES[code.upper()]
    except KeyError:
        raise UsageError(f"unknown code {code[:16]!r}", hint="vfio-intx explain lists them") from None


def _payload(rule: Rule) -> dict[str, str]:
    return {
        "code": rule.code,
        "stage": rule.stage.value,
        "title": rule.title,
        "text": rule.text,
        "source": rule.source,
    }


def _text(rule: Rule) -> str:
    head = f"{rule.code}: {rule.title}"
    stage = f"Stage {rule.stage.number}, {rule.stage.value}, which holds where {rule.stage.demand}."
    columns = screen_columns()
    body = wrapped(f"{stage}\n\n{rule.text}\n\nSource: {rule.source}", columns)
    return f"{wrapped(head, columns)}\n{'=' * min(len(head), columns or len(head))}\n\n{body}"
