"""The manual page: it agrees with parsers, exceptions and environment, and no word of ours is an order to roff."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vfio_intx import errors
from vfio_intx.cli import manpage
from vfio_intx.cli.main import VERBS, parser_of

TREE = Path(__file__).parents[2]
PAGE = TREE / "docs/vfio-intx.8"
#: Set by our own programs for each other, or only for the tests.
NOT_THE_USERS = {"VFIO_INTX_CHANGED", "VFIO_INTX_INSIDE_L1", "VFIO_INTX_SEED", "VFIO_INTX_REQUIRE"}


def plain(text: str) -> str:
    return re.sub(r"\\f[BIR]", "", text).replace("\\-", "-")


def section(name: str) -> str:
    return plain(PAGE.read_text()).split(f"\n.SH {name}\n")[1].split("\n.SH ")[0]


def test_the_page_is_the_one_that_the_parsers_make() -> None:
    assert PAGE.read_text() == manpage.page(), "run tools/gen-man > docs/vfio-intx.8"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_has_its_paragraph(verb: str) -> None:
    part = section("VERBS").split(f".SS {verb}\n")[1].split("\n.SS ")[0]
    options = [action.option_strings[-1] for action in parser_of(verb)[1]._actions if action.option_strings]
    headed = re.findall(r"^\.TP\n(--\S+)", part, re.M)
    assert [option for option in options if option != "--help"] == headed[: len(options) - 1]


def test_every_exit_status_of_an_exception_is_told() -> None:
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.VfioIntxError)]
    told = set(re.findall(r"^\.B (\d+)$", section("EXIT STATUS"), re.M))
    assert {str(one.exit_status) for one in classes} <= told


def test_every_variable_that_a_user_may_set_is_told_and_no_other() -> None:
    sources = "".join(path.read_text() for path in (TREE / "vfio_intx").rglob("*.py") if path.stem != "manpage")
    read = set(re.findall(r"\bVFIO_INTX_[A-Z0-9_]+\b", sources))
    assert read - NOT_THE_USERS == set(re.findall(r"VFIO_INTX_\w+", section("ENVIRONMENT")))


@pytest.mark.parametrize("words", [".SH not a heading", "'quoted", "a\\fBb", "--option", "~/x^y"])
def test_no_word_of_ours_is_an_order_to_roff(words: str) -> None:
    text = manpage._text(words)
    assert not text.startswith((".", "'"))
    assert not re.search(r"(?<!\\)-|\\f|~|\^", text)


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man: apt-get install man-db")
def test_man_has_nothing_to_say_against_it() -> None:
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(PAGE)],
        capture_output=True,
        text=True,
        env={"MANWIDTH": "80", "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "vfio-intx restore [--dry-run]" in done.stdout
