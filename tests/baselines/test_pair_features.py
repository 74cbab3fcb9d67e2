"""Check the further features of classical models on texts whose values can be told by hand."""

import numpy as np
import pyarrow as pa
import pytest

from kit.baselines.features import STYLE_FEATURES, compute_style_features
from kit.task import PROMPT, RESPONSES


def style(prompt: str, answer: str, other: str = "") -> dict[str, float]:
    """Return the features of `answer` by name."""
    columns = zip((PROMPT, *RESPONSES), (prompt, answer, other), strict=True)
    table = pa.table({name: pa.array([[text]], pa.list_(pa.string())) for name, text in columns})
    a, _ = compute_style_features(table)
    return dict(zip(STYLE_FEATURES, a[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("Sure, let me know if that helps!", {"opens_willing", "closes_offering"}),
        ("I'm sorry, but no.", {"opens_refusing", "opens_i"}),
        ("1. one\n2. two\nIn summary, both", {"opens_list", "closes_summing"}),
        ("```\nx\n```", {"closes_code"}),
        ("and why?", {"opens_lower", "closes_question"}),
    ],
)
def test_openings_and_endings_are_marked(answer: str, names: set[str]):
    values = style("Why?", answer)
    marked = {name for name in values if name.startswith(("opens", "closes")) and values[name]}
    assert names <= marked


def test_phrases_are_counted():
    values = style("?", "Perhaps you may. However, I can't, because 3 and 4.5 differ.")
    counts = {name: round(float(np.expm1(values[name]))) for name in ("hedges", "numbers")}
    assert counts == {"hedges": 3, "numbers": 2}
    assert values["number_share"] == pytest.approx(2 / 11)


def test_repetition_and_lines_are_measured():
    values = style("?", "same line\nsame line\n\nother")
    assert values["repeated_lines"] == pytest.approx(1 / 3)
    assert values["repeated_pairs"] == pytest.approx(1 / 4)
    assert np.expm1(values["last_line"]) == pytest.approx(5, rel=1e-6)
    assert style("?", "word " * 500)["compression"] < 0.05


def test_likeness_to_the_prompt():
    same = style("compare Elephants with giraffes", "Compare elephants with giraffes")
    assert same["cosine"] == pytest.approx(1)
    assert (same["rare_of_prompt"], same["pairs_of_prompt"], same["new_words"]) == (1, 1, 0)
    other = style("compare elephants with giraffes", "no")
    assert (other["cosine"], other["rare_of_prompt"], other["pairs_of_prompt"]) == (0, 0, 0)


def test_rows_do_not_depend_on_each_other_and_empty_texts_are_finite():
    texts = ["", "one two", "é 漢字。", "\n\n", "x" * 3000]
    table = pa.table(
        {
            name: pa.array([[text] for text in texts], pa.list_(pa.string()))
            for name in (PROMPT, *RESPONSES)
        }
    )
    a, b = compute_style_features(table)
    np.testing.assert_array_equal(a, b)
    assert np.isfinite(a).all()
    for row in range(len(texts)):
        alone, _ = compute_style_features(table.slice(row, 1))
        np.testing.assert_array_equal(alone[0], a[row])
    assert compute_style_features(table.slice(0, 0))[0].shape == (0, len(STYLE_FEATURES))
