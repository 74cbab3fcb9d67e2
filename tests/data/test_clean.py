"""Check what the text forms keep and drop, and which prompts count as equal."""

import re
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data import clean

ANY = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("\r\n\t \0\x1c\x85\xa0\u3000é中\ud83d"),
    max_size=30,
)


def texts(prompt: list, response_a: list, response_b: list) -> pa.Table:
    columns = zip(clean.TEXTS, (prompt, response_a, response_b), strict=True)
    return pa.table({name: pa.chunked_array([column], clean.TURNS) for name, column in columns})


@pytest.mark.parametrize(
    ("text", "wanted", "counted"),
    [
        ("Привет,\n\n  мир 😀\t", "Привет,\n\n  мир 😀\t", {}),
        ("a\ud83db\udc00", "a\ufffdb\ufffd", {"lone_surrogates": 1}),
        ("a\0b\0", "ab", {"nul_characters": 1}),
        ("a\r\nb\rc\n", "a\nb\nc\n", {"carriage_returns": 1}),
        (
            "\0\r\n\ud83d",
            "\n\ufffd",
            {"nul_characters": 1, "carriage_returns": 1, "lone_surrogates": 1},
        ),
    ],
)
def test_the_unicode_form_changes_only_what_it_counts_as_repaired(
    text: str, wanted: str, counted: dict
) -> None:
    repairs: Counter = Counter()
    assert clean.repair_text(text, repairs) == wanted
    assert repairs == counted


@given(ANY)
@settings(deadline=None, max_examples=200)
def test_a_repaired_text_is_valid_utf8_and_needs_no_second_repair(text: str) -> None:
    repaired = clean.repair_text(text, Counter())
    assert repaired.encode().decode() == repaired
    assert not set(repaired) & {"\0", "\r"}
    again: Counter = Counter()
    assert clean.repair_text(repaired, again) == repaired
    assert not again


@given(ANY)
@settings(deadline=None, max_examples=300)
def test_the_ascii_form_equals_the_references_regular_expressions(text: str) -> None:
    text = clean.repair_text(text, Counter())
    by_regex = re.sub(r"[^\x00-\x7f]+", "", re.sub(r"\s+", " ", text))
    assert clean.strip_to_ascii(text) == re.sub(" +", " ", by_regex).strip()


def test_the_ascii_form_closes_the_gaps_of_dropped_characters() -> None:
    assert clean.strip_to_ascii("  naïve\u00a0words —\n\tand 中文 more ") == "nave words and more"


def test_the_ascii_form_of_a_slice_is_the_slice_of_the_ascii_form() -> None:
    table = texts(
        [["a  b"], ["é", "c\n"], ["", "中"]], [["x"], ["y "], ["z"]], [["1"], ["2"], ["3", "4 "]]
    )
    assert (
        clean.strip_turns_to_ascii(table.slice(1, 2)).to_pylist()
        == clean.strip_turns_to_ascii(table).to_pylist()[1:]
    )
    assert clean.strip_turns_to_ascii(table)["prompt"].to_pylist() == [["a b"], ["", "c"], ["", ""]]


def test_prompts_that_differ_in_case_width_or_white_space_are_equal() -> None:
    keys = {
        clean.normalise_prompt(p)
        for p in ("Straße ﬁn １", "strasse  FIN\n1 ", "\tSTRASSE fin\u30001")
    }
    assert len(keys) == 1
    assert clean.normalise_prompt("résumé") != clean.normalise_prompt("resume")


def test_rows_whose_prompt_and_answers_differ_in_turns_are_found() -> None:
    table = texts([["p"], ["p", "q"], ["p"]], [["a"], ["a", "b"], ["a"]], [["x"], ["x"], ["x"]])
    assert clean.find_uneven_turns(table).tolist() == [False, True, False]
