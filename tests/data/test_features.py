"""Check the features against direct counts; swapping the answers must swap them to the last bit."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data import features
from kit.data.dataset import Dataset
from kit.data.features import FEATURES, PAIR_FEATURES, PATTERNS, compute_features
from kit.task import TEXTS

TURNS = pa.list_(pa.string())
PIECES = [
    *("", " ", "\n", "\n\n", "- ", "1. ", "# ", "```", "`", "**", "|", "?", "!"),
    *("word", "Word", "слово", "言葉", "é", "😀"),
]
TEXT = st.one_of(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30),
    st.lists(st.sampled_from(PIECES), max_size=15).map("".join),
)
ROWS = st.lists(st.tuples(*[st.lists(TEXT, min_size=1, max_size=3)] * 3), min_size=1, max_size=6)


def table(rows: list[tuple[list[str], list[str], list[str]]]) -> pa.Table:
    return pa.table(
        {name: pa.array([row[i] for row in rows], TURNS) for i, name in enumerate(TEXTS)}
    )


def named(answer: str | list[str], prompt: str = "") -> dict[str, float]:
    """Return the features of an answer by name; the other answer is empty."""
    turns = [answer] if isinstance(answer, str) else answer
    a, _, _ = compute_features(table([([prompt], turns, [""])]))
    return dict(zip(FEATURES, a[0].tolist(), strict=True))


def times(number: float) -> object:
    """Return the feature of a pattern that occurs `number` times."""
    return pytest.approx(np.log1p(number), rel=1e-6)


def test_names_are_those_of_the_columns(processed: Dataset):
    a, b, pair = compute_features(processed.train())
    rows = processed.train().num_rows
    assert (a.shape, b.shape, pair.shape) == ((rows, len(FEATURES)),) * 2 + (
        (rows, len(PAIR_FEATURES)),
    )
    assert len(set(FEATURES) | set(PAIR_FEATURES)) == len(FEATURES) + len(PAIR_FEATURES)
    assert a.dtype == b.dtype == pair.dtype == np.float32
    assert np.isfinite(np.hstack([a, b, pair])).all()
    # On texts as mixed as the sample's, nearly every feature varies.
    assert (a.std(axis=0) > 0).mean() > 0.8


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_swapping_the_answers_swaps_their_features_to_the_last_bit(rows):
    a, b, pair = compute_features(table(rows))
    swapped = compute_features(table([(prompt, second, first) for prompt, first, second in rows]))
    for one, other in zip((b, a, pair), swapped, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_a_row_depends_only_on_itself_and_nothing_is_nan(rows):
    together = compute_features(table(rows))
    assert all(np.isfinite(block).all() for block in together)
    for place, row in enumerate(rows):
        for one, other in zip(compute_features(table([row])), together, strict=True):
            np.testing.assert_array_equal(one[0], other[place])


@pytest.mark.parametrize("size", [1, 7, 100])
def test_rows_are_computed_in_pieces_of_any_size(
    size: int, processed: Dataset, monkeypatch: pytest.MonkeyPatch
):
    whole = compute_features(processed.train())
    monkeypatch.setattr("kit.data.features.ROWS", size)
    for one, other in zip(compute_features(processed.train()), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_characters_are_counted_as_python_counts_them_and_shares_are_0_to_1(rows):
    a, _, _ = compute_features(table(rows))
    by_name = dict(zip(FEATURES, a.T, strict=True))

    length = [len("\n".join(turns)) for _, turns, _ in rows]
    np.testing.assert_allclose(by_name["characters"], np.log1p(length), rtol=1e-6)
    np.testing.assert_allclose(
        by_name["last_turn"], np.log1p([len(turns[-1]) for _, turns, _ in rows]), rtol=1e-6
    )
    np.testing.assert_allclose(
        by_name["lines"], np.log1p([1 + "\n".join(t).count("\n") for _, t, _ in rows]), rtol=1e-6
    )

    shares = ("distinct_words", "from_prompt", "of_prompt", "script_match")
    for name in (*features.ASCII, *features.SCRIPTS, *shares):
        assert (by_name[name] >= 0).all()
        assert (by_name[name] <= 1 + 1e-6).all()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text(st.characters(blacklist_categories=["Cs"]), max_size=20), min_size=1),
    st.integers(1, 40),
)
def test_bytes_are_counted_in_pieces_of_any_size(texts, size):
    array = pa.array(texts, pa.large_string())
    counts = features.character_histogram(array)
    assert counts.sum(axis=1).tolist() == [len(text.encode()) for text in texts]
    assert features.character_counts(counts).tolist() == [len(text) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "CHUNK", size)
        np.testing.assert_array_equal(features.character_histogram(array), counts)
    np.testing.assert_array_equal(features.character_histogram(array.slice(1)), counts[1:])


def test_formatting_is_counted():
    text = "# Title\n\nSome **bold** text with `code`.\n- one\n* two\n  1. three\n2) four\n"
    text += "```py\nx\n```\n|a|b|\nhttps://x.org ok?"
    found = named(text)
    for name in ("headings", "bold", "paragraphs", "table_rows", "links", "questions"):
        assert found[name] == times(1), name
    assert (found["list_items"], found["numbered_items"]) == (times(4), times(2))
    assert (found["code_fences"], found["inline_code"]) == (times(2), times(1))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1. 2. 3. - x", "list_items"),
        ("1. 2. 3. x", "numbered_items"),
        ("# # # a", "headings"),
        ("``````", "code_fences"),
        ("|a||b|", "table_rows"),
    ],
)
def test_a_mark_at_the_beginning_of_a_line_counts_once(text: str, name: str):
    assert named(text)[name] == times(1)
    assert named(f"{text}\n{text}\n\n{text}")[name] == times(3)


@settings(deadline=None, max_examples=100)
@given(TEXT)
def test_marks_at_the_beginning_of_lines_are_counted_as_python_counts_them(text: str):
    found = named(text)
    for name, pattern in PATTERNS.items():
        if pattern.startswith("(?m)^"):
            assert found[name] == times(len(re.findall(pattern.replace(r"\d", "[0-9]"), text)))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("I'm sorry, but I can't.", 2),
        ("I’m unable to. As an AI, I cannot", 3),
        ("I can do that, as a model of clay", 0),
    ],
)
def test_refusals_are_recognised(text, count):
    assert named(text)["refusals"] == times(count)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("hello", "latin"),
        ("été", "latin"),
        ("привет", "cyrillic"),
        ("γειά", "greek"),
        ("مرحبا", "semitic"),
        ("नमस्ते", "indic"),
        ("漢字", "han"),
        ("かな", "kana"),
        ("한글", "hangul"),
        ("😀", "emoji"),
    ],
)
def test_each_script_is_recognised(text, script):
    found = named(text, prompt=text)
    assert found[script] == pytest.approx(1)
    assert found["script_match"] == pytest.approx(1)
    assert named("12", prompt=text)["script_match"] == 0


def test_words_are_compared_without_case_and_punctuation():
    found = named("The cat, the CAT; a dog!", prompt="Is the cat black?")
    assert (found["words"], found["distinct_words"]) == (times(6), pytest.approx(4 / 6))
    assert found["from_prompt"] == pytest.approx(2 / 4)
    assert found["of_prompt"] == pytest.approx(2 / 4)

    _, _, pair = compute_features(table([(["x"], ["one two three"], ["Two, three four"])]))
    by_name = dict(zip(PAIR_FEATURES, pair[0].tolist(), strict=True))
    assert by_name["common_words"] == pytest.approx(2 / 4)
    assert by_name["length_ratio"] == pytest.approx(13 / 15)
    assert by_name["same"] == 0


def test_characters_of_a_script_without_spaces_count_as_words():
    text = "今日は天気がとてもいいですね散歩に行きましょう"
    assert named(text)["words"] == times(len(text))


def test_empty_and_unfinished_answers_are_recognised():
    assert (named("")["empty"], named("")["unfinished"]) == (1, 0)
    assert (named("It ends.")["empty"], named("It ends.\n")["unfinished"]) == (0, 0)
    assert named("It ends in the mid")["unfinished"] == 1
    a, b, pair = compute_features(table([(["x"], ["same"], ["same"]), (["x"], [""], [""])]))
    assert pair[:, PAIR_FEATURES.index("same")].tolist() == [1, 1]
    np.testing.assert_array_equal(a, b)


def test_turns_are_counted_and_an_empty_table_has_no_features():
    assert named(["one", "two", "three!"])["turns"] == times(3)
    assert [block.shape[0] for block in compute_features(table([]))] == [0, 0, 0]
