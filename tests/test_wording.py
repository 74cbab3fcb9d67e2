"""Check that counts agree with their nouns, and that near names are found."""

import pytest

from kit.wording import counted, find_nearest, first_line, name_nearest, shorten


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 seeds"), (1, "1 seed"), (2, "2 seeds"), (1200, "1,200 seeds")]
)
def test_a_noun_agrees_with_its_count(count: int, text: str):
    assert counted(count, "seed") == text


def test_just_the_names_are_proposed_that_are_as_near_as_the_nearest():
    names = ["deberta-large", "roberta-large", "deberta-large-lora", "length"]
    assert find_nearest("debrta-large", names) == ["deberta-large"]
    assert find_nearest("DEBERTA-LARGE", names)[0] == "deberta-large"
    assert len(find_nearest("a1", [f"a1{letter}" for letter in "abcdef"])) == 3


def test_a_hint_asks_for_what_was_meant_and_says_where_all_names_are():
    assert name_nearest("lenght", ["length"], "All.") == "Did you mean length? All."
    assert name_nearest("ab", ["abc", "abd"], "All.") == "Did you mean abd or abc? All."
    assert name_nearest("nothing", ["length"], "All.") == "All."


def test_a_long_cause_is_cut_behind_a_word():
    text = "word " * 60
    assert first_line(ValueError(text + "\nmore")) == "word " * 39 + "…"
    assert first_line(ValueError("short\nmore")) == "short"
    assert first_line(ValueError()) == "ValueError"
    assert shorten("x" * 300) == "x" * 198 + " …"
