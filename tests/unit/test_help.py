"""Help, examples and documents against the parsers: a command that we write down has to be one that we take."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from vfio_intx.cli.main import VERBS, main, parser_of

TREE = Path(__file__).parents[2]
DOCUMENTS = (TREE / "README.md", TREE / "HACKING.md", *sorted((TREE / "docs").glob("*.md")))
EXAMPLE = re.compile(r"^  (vfio-intx .*)$", re.M)
#: A command in a block of commands, up to a comment, prose in the next column or the next command.
IN_BLOCK = re.compile(r"^    .*?\b(vfio-intx [a-z].*?)(?= {2,}|  *#|;|$)", re.M)
#: One in a sentence, which may leave out what does not matter there.
IN_SENTENCE = re.compile(r"`(vfio-intx [a-z][^`]*)`")


def parsed(command: str) -> argparse.Namespace:
    """The command as its verb's parser takes it; what it does not take fails the test with the parser's words."""
    program, verb, *rest = shlex.split(command)
    assert program == "vfio-intx"
    assert verb in VERBS, command
    return parser_of(verb)[1].parse_args(rest)


def written(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    found = ((path.name, match[1]) for path in DOCUMENTS for match in pattern.finditer(path.read_text()))
    return sorted({(name, " ".join(command.split())) for name, command in found})


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_ends_with_examples_that_its_parser_takes(verb: str) -> None:
    module, parser = parser_of(verb)
    examples = EXAMPLE.findall(module.EPILOG)
    assert examples
    assert str(parser.epilog) == module.EPILOG
    for example in examples:
        assert example.split()[1] == verb
        parsed(example)


@pytest.mark.parametrize("verb", VERBS)
def test_no_option_goes_without_a_word_of_help(verb: str) -> None:
    _, parser = parser_of(verb)
    assert [action.dest for action in parser._actions if not action.help and action.dest != "action"] == []


@pytest.mark.parametrize("verb", VERBS)
def test_an_example_is_printed_as_it_is_however_narrow_the_terminal(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    assert main([verb, "--help"]) == 0
    assert set(EXAMPLE.findall(parser_of(verb)[0].EPILOG)) <= set(EXAMPLE.findall(capsys.readouterr().out))


@pytest.mark.parametrize(("document", "command"), written(IN_BLOCK))
def test_a_command_in_a_document_is_one_that_we_take(document: str, command: str) -> None:
    parsed(command)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """All options of a parser and of its parts."""
    found = {option for action in parser._actions for option in action.option_strings}
    parts = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.union(*(options_of(part) for action in parts for part in action.choices.values()))


@pytest.mark.parametrize(("document", "command"), written(IN_SENTENCE))
def test_a_command_in_a_sentence_has_a_verb_and_options_that_there_are(document: str, command: str) -> None:
    _, verb, *words = command.partition(" -- ")[0].split()
    assert {word for word in words if word.startswith("-")} <= options_of(parser_of(verb)[1])


def test_the_documents_have_commands_at_all() -> None:
    verbs = {command.split()[1] for _, command in written(IN_BLOCK)}
    assert verbs >= {"scan", "bind", "restore", "bench", "trace", "switch"}


def test_the_overview_names_every_verb_and_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(VERBS)


@pytest.mark.parametrize("argv", [["help", "kick"], ["--help", "kick"], ["kick", "--help"]])
def test_help_may_stand_before_the_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("usage: vfio-intx kick ")


@pytest.mark.parametrize(
    "command",
    ["-- 7.2 -x", "--json f --keep d -- 7.2 -x", "--json f -- 7.2 -x", "7.2 -- -x", "--json=f --keep=d -- 7.2 -x"],
)
def test_words_for_a_scenario_may_stand_behind_options(command: str) -> None:
    arguments = parsed(f"vfio-intx lab run qemu/defects {command}")
    assert (arguments.name, arguments.words) == ("qemu/defects", ["7.2", "-x"])


@pytest.mark.parametrize("argv", [["lab", "run"], ["lab", "run", "smoke", "--nonsense"], ["lab", "nonsense"]])
def test_a_part_of_a_verb_has_the_same_kind_of_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert re.fullmatch(r"vfio-intx lab( run)?: .*\n  try: vfio-intx lab( run)? --help\n", capsys.readouterr().err)
