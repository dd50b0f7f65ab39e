"""Names are parsed once, whole and ASCII, and nothing but a UsageError comes of a bad one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_intx.errors import UsageError
from vfio_intx.names import Bdf, escape, parse_driver, parse_natural


@pytest.mark.parametrize("text", ["0000:05:00.0", "05:00.0", "pci_0000_05_00_0", "pci/0000:05:00.0"])
def test_every_form_of_a_bdf_names_the_same_function(text: str) -> None:
    assert Bdf.parse(text) == Bdf(0, 5, 0, 0)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7))
def test_a_bdf_survives_being_printed(domain: int, bus: int, slot: int, function: int) -> None:
    bdf = Bdf(domain, bus, slot, function)
    assert Bdf.parse(str(bdf)) == bdf
    assert Bdf.parse(str(bdf).upper()) == bdf


@pytest.mark.parametrize(
    "text",
    [
        "",
        "05:00",
        "5:0.0",
        "0000:05:00.8",
        "0000:05:20.0",
        "0000:05:00.0\n",
        " 0000:05:00.0",
        "../0000:05:00.0",
        "0000:\u0660\u0665:00.0",
        "0000:05:00.0" * 20,
        "\0",
    ],
)
def test_anything_else_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Bdf.parse(text)
    assert len(str(caught.value)) < 300


@given(st.text())
def test_no_text_at_all_makes_a_parser_raise_anything_else(text: str) -> None:
    for parse in (Bdf.parse, parse_driver, lambda t: parse_natural(t, "a count")):
        try:
            parse(text)
        except UsageError:
            continue


@given(st.text())
def test_a_driver_name_is_one_harmless_path_component(text: str) -> None:
    try:
        name = parse_driver(text)
    except UsageError:
        return
    assert name == text
    assert not set(name) & set('/\0\n"$`\\')
    assert name.strip(" .") == name


@pytest.mark.parametrize("name", ["e1000e", "3w-9xxx", "cx88-mpeg driver manager", "hexium HV-PCI6 Orion", "HP CISS"])
def test_the_names_that_drivers_bear(name: str) -> None:
    assert parse_driver(name) == name


@given(st.text())
def test_an_escaped_text_moves_no_cursor(text: str) -> None:
    assert escape(text).isprintable()


def test_escape_leaves_plain_words_alone_and_shows_the_rest() -> None:
    assert escape("Gerät busy") == "Gerät busy"
    assert escape("\x1b[31mred\n") == "\\x1b[31mred\\n"


@pytest.mark.parametrize("text", ["-1", "1.0", "\u0663", "", "99999999999999", " 1", "0x10"])
def test_a_number_is_ascii_digits_within_bounds(text: str) -> None:
    with pytest.raises(UsageError, match="a count must be a whole number from 1 to 10"):
        parse_natural(text, "a count", least=1, most=10)
