"""Texts of strangers: nothing invisible stays invisible, and nothing readable is touched."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.report.escape import MOST, SHOWN, make_visible, one_line, visible_pieces


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_no_control_and_no_direction_mark_is_left(text: str):
    for character in make_visible(text):
        assert character in "\n\t" or unicodedata.category(character) not in (
            "Cc",
            "Cs",
            "Zl",
            "Zp",
        )
        assert unicodedata.bidirectional(character) not in (
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )


@pytest.mark.parametrize(
    "text", ["naïve\n\tcode", "你好", "שלום", "👩\u200d💻", "می\u200cخواهم", "a\u0301", "½ → ∞"]
)
def test_what_can_be_read_stays(text: str):
    assert make_visible(text) == text


def test_a_hidden_character_is_named_by_its_code_point():
    assert make_visible("a\u202eb\x00\U000e0041") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+E0041⟩"


def test_a_name_is_one_line():
    assert one_line("two\nlines\t here") == "two lines here"


def test_a_short_text_is_whole_and_a_long_one_is_folded_and_cut():
    assert visible_pieces(("short",)) == ("short", "", 0)
    long = "x" * (MOST + 5)
    beginning, whole, more = visible_pieces((long,))
    assert (beginning, len(whole), more) == ("x" * SHOWN + " …", MOST, 5)


def test_turns_are_numbered():
    assert visible_pieces(("one", "two\u202e"))[0] == "[turn 1]\none\n\n[turn 2]\ntwo⟨U+202E⟩"
