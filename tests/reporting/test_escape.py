"""Check that no invisible character stays invisible, and that readable text is left alone."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.reporting.escape import MAX_LENGTH, PREVIEW_LENGTH, fold_text, make_visible, one_line

INVISIBLE_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
DIRECTION_MARKS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_controls_and_direction_marks_are_replaced(text: str):
    for character in make_visible(text):
        category = unicodedata.category(character)
        assert character in "\n\t" or category not in INVISIBLE_CATEGORIES
        assert unicodedata.bidirectional(character) not in DIRECTION_MARKS


@pytest.mark.parametrize(
    "text", ["naïve\n\tcode", "你好", "שלום", "👩\u200d💻", "می\u200cخواهم", "a\u0301", "½ → ∞"]
)
def test_readable_text_stays_as_it_is(text: str):
    assert make_visible(text) == text


def test_a_hidden_character_is_named_by_its_code_point():
    assert make_visible("a\u202eb\x00\U000e0041") == "a⟨U+202E⟩b⟨U+0000⟩⟨U+E0041⟩"


def test_a_name_is_put_on_one_line():
    assert one_line("two\nlines\t here") == "two lines here"


def test_a_long_text_is_folded_and_cut():
    assert fold_text(("short",)) == ("short", "", 0)
    beginning, whole, omitted = fold_text(("x" * (MAX_LENGTH + 5),))
    assert beginning == "x" * PREVIEW_LENGTH + " …"
    assert len(whole) == MAX_LENGTH
    assert omitted == 5


def test_turns_are_numbered():
    assert fold_text(("one", "two\u202e"))[0] == "[turn 1]\none\n\n[turn 2]\ntwo⟨U+202E⟩"
