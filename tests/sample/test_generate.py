"""Check the sample: Kaggle's format and irregularities, a learnable rule and its Bayes loss.

The same seed must give the same bytes on every platform, and no existing file may be overwritten.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from kit import task
from kit.errors import KitError
from kit.predictions import read_predictions
from kit.sample import generate
from kit.sample import labels as judge
from kit.sample import text as sample_text

CLASSES, TEXTS = list(task.CLASSES), list(task.TEXTS)
LONE = re.compile("[\ud800-\udfff]")


def _read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return train.csv and test.csv with parsed cells, and test.csv with its labels."""
    train, test = (
        pd.read_csv(folder / name, keep_default_na=False)
        for name in (task.TRAIN_FILE, task.TEST_FILE)
    )
    test = test.merge(pd.read_csv(folder / task.TRUTH_FILE), on=task.ID, validate="1:1")
    for table in (train, test):
        table["label"] = table[CLASSES].to_numpy().argmax(axis=1)
        table[TEXTS] = table[TEXTS].map(json.loads)
    return train, test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    generate.write_sample(out)
    return out


@pytest.fixture(scope="module")
def tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return _read(folder)


@pytest.fixture(scope="module")
def judged(
    folder: Path, tables: tuple[pd.DataFrame, pd.DataFrame]
) -> tuple[np.ndarray, np.ndarray]:
    """Return Bayes probabilities (N, 3) and labels (N,) of train and test together."""
    both = pd.concat(tables)
    return _bayes(folder, both), both["label"].to_numpy()


def _bayes(folder: Path, table: pd.DataFrame) -> np.ndarray:
    return (
        read_predictions(folder / task.BAYES_FILE)
        .set_index(task.ID)
        .loc[table[task.ID], CLASSES]
        .to_numpy()
    )


def _losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(probabilities[np.arange(len(labels)), labels])


def _length(turns: list[str | None]) -> int:
    return sum(len(turn or "") for turn in turns)


def _plain(turns: list[str | None]) -> str:
    """Return all turns as one text that pandas can hold.

    Its strings are UTF-8, which has no lone surrogates.
    """
    return LONE.sub("\N{REPLACEMENT CHARACTER}", " ".join(turn or "" for turn in turns))


# The file format


def test_the_files_have_kaggles_columns_and_row_counts(
    folder: Path, tables: tuple[pd.DataFrame, pd.DataFrame]
):
    first = {
        name: (folder / name).read_text("ascii").partition("\n")[0] for name in generate.FILES[:4]
    }
    assert first[task.TRAIN_FILE] == (
        "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie"
    )
    assert first[task.TEST_FILE] == "id,prompt,response_a,response_b"
    assert (
        first[task.SAMPLE_FILE]
        == first[task.TRUTH_FILE]
        == "id,winner_model_a,winner_model_b,winner_tie"
    )

    train, test = tables
    assert (len(train), len(test)) == (2400, 600)

    uniform = read_predictions(folder / task.SAMPLE_FILE)
    assert uniform[task.ID].tolist() == test[task.ID].tolist()
    assert np.allclose(uniform[CLASSES], 1 / 3)


def test_ids_are_unique_over_both_files_and_unordered(
    folder: Path, tables: tuple[pd.DataFrame, pd.DataFrame]
):
    ids = pd.concat(tables)[task.ID]
    assert ids.is_unique
    assert ids.between(0, 2**32 - 1).all()
    assert abs(np.corrcoef(ids.rank(), np.arange(len(ids)))[0, 1]) < 0.1
    assert read_predictions(folder / task.BAYES_FILE)[task.ID].tolist() == ids.tolist()


def test_every_label_is_one_hot_and_the_two_models_differ(
    tables: tuple[pd.DataFrame, pd.DataFrame],
):
    for table in tables:
        assert np.isin(table[CLASSES], (0, 1)).all()
        assert (table[CLASSES].sum(axis=1) == 1).all()
    assert (tables[0]["model_a"] != tables[0]["model_b"]).all()


def test_cells_are_written_as_kaggle_writes_them(folder: Path):
    raw = pd.read_csv(folder / task.TRAIN_FILE, keep_default_na=False)[TEXTS].to_numpy().ravel()
    assert all(cell.isascii() and cell.isprintable() for cell in raw)
    assert not any(re.search(r"(?<!\\)/", cell) for cell in raw)

    text = "\n".join(raw)
    for escape in (
        r"<\/form>",
        r"\n",
        r"\"",
        r"\t",
        r"\\",
        r"\u00",
        r"\u200b",
        r"\u001b",
        r"\ud83d\ude0a",
        '","',
    ):
        assert escape in text, escape


def test_every_turn_of_a_prompt_has_an_answer_on_both_sides(
    tables: tuple[pd.DataFrame, pd.DataFrame],
):
    for table in tables:
        turns = table[TEXTS].map(len)
        assert (turns.nunique(axis=1) == 1).all()
        assert all(isinstance(turn, str) for prompt in table[task.PROMPT] for turn in prompt)


# Irregularities of the real files


def _irregularities(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Return a mask of the rows for each kind of irregularity."""
    a, b = table["response_a"], table["response_b"]
    turns = table[task.PROMPT].map(len)
    letters = table[task.PROMPT].map(_plain)
    longest = pd.concat([a.map(_length), b.map(_length)], axis=1).max(axis=1)
    texts = table[[*task.MODELS, *TEXTS]].map(str)
    repeated = texts.duplicated(keep=False)
    with_label = texts.assign(label=table["label"]).duplicated(keep=False)

    scripts = {"Arabic": "[\u0621-\u064a]", "Russian": "[а-я]", "Chinese": "[\u4e00-\u9fff]"}
    words = {"Spanish": r"¿Qué|Explícame", "German": r"sollte ich|Erkläre"}
    return {
        "two turns": turns == 2,
        "twelve turns": turns == 12,
        "null turn": a.map(lambda x: None in x) | b.map(lambda x: None in x),
        "lone surrogate": table[TEXTS]
        .map(lambda x: bool(LONE.search("".join(t or "" for t in x))))
        .any(axis=1),
        "code": a.map(lambda x: "```" in _plain(x)),
        "very long": longest >= 5_000,
        "repeated prompt": letters.duplicated(keep=False),
        "long prompt": letters.str.len() >= 500,
        "identical answers": (a == b) & a.map(_length).gt(0),
        "both empty": longest == 0,
        "exact duplicate": with_label,
        "duplicate with another label": repeated & ~with_label,
        **{name: letters.str.contains(pattern) for name, pattern in (scripts | words).items()},
    }


@pytest.mark.parametrize(("rows", "seed"), [(200, 0), (200, 1), (317, 2)])
def test_a_sample_of_200_rows_has_every_irregularity(tmp_path: Path, rows: int, seed: int):
    generate.write_sample(tmp_path, rows, seed)
    missing = [
        kind for kind, found in _irregularities(_read(tmp_path)[0]).items() if not found.any()
    ]
    assert missing == []


def test_irregularities_are_about_as_frequent_as_in_the_real_data(
    tables: tuple[pd.DataFrame, pd.DataFrame],
):
    share = {kind: found.mean() for kind, found in _irregularities(tables[0]).items()}
    assert 0.002 <= share["null turn"] <= 0.005
    assert 0.005 <= share["lone surrogate"] <= 0.02
    assert 0.06 <= share["code"] <= 0.10
    assert 0.005 <= share["very long"] <= 0.03
    assert 0.14 <= share["repeated prompt"] <= 0.20
    assert 0.003 <= share["identical answers"] <= 0.008
    assert 0.001 <= share["both empty"] <= 0.004
    assert 0.08 <= sum(share[v.name] for v in sample_text.FOREIGN) <= 0.12

    turns = tables[0][task.PROMPT].map(len)
    assert (turns.median(), turns.quantile(0.9), turns.max()) == (1, 2, 12)


def test_answers_are_as_long_and_as_uneven_as_real_ones(tables: tuple[pd.DataFrame, pd.DataFrame]):
    a, b = (tables[0][side].map(_length) for side in task.RESPONSES)
    answered = (a > 0) & (b > 0)
    assert 500 <= pd.concat([a, b]).median() <= 700
    assert 15_000 <= max(a.max(), b.max()) <= 50_000
    assert 0.6 <= np.log(a[answered]).std() <= 1.3
    assert 0.6 <= (np.log(a[answered]) - np.log(b[answered])).std() <= 1.3


def test_train_and_test_share_no_prompt(tables: tuple[pd.DataFrame, pd.DataFrame]):
    train, test = (set(table[task.PROMPT].map(tuple)) for table in tables)
    assert not train & test


# The rule


def test_bayes_csv_is_the_rule_applied_to_the_text_in_the_files(
    folder: Path, tables: tuple[pd.DataFrame, pd.DataFrame]
):
    for table in tables:
        pairs = zip(table["response_a"], table["response_b"], strict=True)
        expected = [judge.davidson_probabilities(judge.latent_difference(a, b)) for a, b in pairs]
        assert np.allclose(_bayes(folder, table), expected, rtol=0, atol=1e-15)


@settings(deadline=None, max_examples=50)
@given(st.floats(-30, 30))
def test_davidsons_model_holds_at_any_difference(d: float):
    win, lose, tie = judge.davidson_probabilities(d)
    assert math.isclose(win + lose + tie, 1)
    # Without ties the model is Bradley and Terry's.
    assert math.isclose(math.log(win / lose), d, abs_tol=1e-9)
    # Ties are in proportion to the geometric mean.
    assert math.isclose(tie, judge.TIES * math.sqrt(win * lose))


_phrases = [
    phrase for voice in sample_text.VOICES for phrase in voice.good + voice.bad + voice.neutral
]
_turns = st.lists(
    st.none() | st.lists(st.sampled_from(_phrases) | st.text(), max_size=5).map(" ".join),
    max_size=3,
)


@settings(deadline=None, max_examples=100)
@given(_turns, _turns)
def test_swapping_the_answers_permutes_the_probabilities(a: list[str | None], b: list[str | None]):
    straight, swapped = (
        judge.davidson_probabilities(judge.latent_difference(*pair)) for pair in ((a, b), (b, a))
    )
    assert [swapped[c] for c in task.SWAP] == list(straight)


def test_equal_answers_have_no_difference(tables: tuple[pd.DataFrame, pd.DataFrame]):
    equal = [
        (a, b) for a, b in zip(*(tables[0][side] for side in task.RESPONSES), strict=True) if a == b
    ]
    assert len(equal) > 5
    assert {judge.latent_difference(a, b) for a, b in equal} == {0.0}


def test_no_phrase_occurs_inside_another_text():
    phrases = {
        phrase for voice in sample_text.VOICES for phrase in voice.good + voice.bad + voice.neutral
    }
    others = [
        text
        for v in sample_text.VOICES
        for text in (*v.tails, *v.topics, *v.prompts, *v.follow, *v.snippets, *sample_text.CLOSINGS)
    ]

    # The coder has the phrases of English, every other voice has its own.
    occurrences = Counter(
        p for v in (*sample_text.FOREIGN, sample_text.ENGLISH) for p in v.good + v.bad + v.neutral
    )
    assert max(occurrences.values()) == 1
    assert not [(a, b) for a in phrases for b in (*phrases, *others) if a != b and a in b]


def test_the_beginning_of_an_answer_is_a_fair_sample_of_it(
    tables: tuple[pd.DataFrame, pd.DataFrame],
):
    whole = [turns for side in task.RESPONSES for turns in tables[1][side] if _length(turns) > 400]
    beginnings = [["".join(turn or "" for turn in turns)[:400]] for turns in whole]
    correlation = np.corrcoef(
        [judge.answer_quality(t) for t in whole], [judge.answer_quality(t) for t in beginnings]
    )[0, 1]
    assert correlation > 0.9


# The Bayes log loss


def test_the_labels_are_drawn_from_the_bayes_probabilities(judged: tuple[np.ndarray, np.ndarray]):
    probabilities, labels = judged
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    variance = (probabilities * np.log(probabilities) ** 2).sum(axis=1) - entropy**2
    assert abs((_losses(probabilities, labels) - entropy).sum()) < 3.5 * math.sqrt(variance.sum())

    surprise = (np.eye(3)[labels] - probabilities).sum(axis=0)
    deviation = np.sqrt((probabilities * (1 - probabilities)).sum(axis=0))
    assert (np.abs(surprise) < 3.5 * deviation).all()


def test_bayes_loss_and_tie_rate_resemble_the_competition(judged: tuple[np.ndarray, np.ndarray]):
    probabilities, labels = judged
    assert 0.80 <= _losses(probabilities, labels).mean() <= 0.88
    assert 0.25 <= (labels == 2).mean() <= 0.31


def test_the_longer_answer_wins_about_six_in_ten(tables: tuple[pd.DataFrame, pd.DataFrame]):
    both = pd.concat(tables)
    longer = both["response_a"].map(_length) - both["response_b"].map(_length)
    decided = (both["label"] != 2) & (longer != 0)
    assert 0.55 <= ((longer > 0) == (both["label"] == 0))[decided].mean() <= 0.65


def _powered(probabilities: np.ndarray, power: float) -> np.ndarray:
    return probabilities**power / (probabilities**power).sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda p: np.full_like(p, 1 / 3), id="uniform"),
        pytest.param(lambda p: np.broadcast_to(p.mean(axis=0), p.shape), id="prior"),
        pytest.param(lambda p: p[:, list(task.SWAP)], id="swapped"),
        pytest.param(lambda p: np.roll(p, 1, axis=0), id="one row off"),
        pytest.param(lambda p: _powered(p, 1.3), id="overconfident"),
        pytest.param(lambda p: _powered(p, 0.7), id="underconfident"),
        pytest.param(lambda p: _powered(p * (1, 1, 0.7), 1), id="too few ties"),
        pytest.param(lambda p: _powered(p * (1.3, 1, 1), 1), id="leaning to A"),
    ],
)
def test_no_other_prediction_beats_the_bayes_probabilities(
    judged: tuple[np.ndarray, np.ndarray], wrong
):
    probabilities, labels = judged
    worse = _losses(wrong(probabilities), labels) - _losses(probabilities, labels)
    assert worse.mean() > -2 * worse.std() / math.sqrt(len(worse))


def test_a_bag_of_words_model_learns_most_of_the_rule(
    folder: Path, tables: tuple[pd.DataFrame, pd.DataFrame]
):
    train = tables[0].iloc[:1600]
    held_out = pd.concat([tables[0].iloc[1600:], tables[1]])
    both = pd.concat([train, held_out])
    beginnings = {side: both[side].map(lambda x: _plain(x)[:500]) for side in task.RESPONSES}

    bag = CountVectorizer(token_pattern=r"\w+", max_features=2000)
    bag.fit(beginnings["response_a"][: len(train)])
    a, b = (normalize(bag.transform(texts), "l1") for texts in beginnings.values())
    features = (a - b).tocsr()
    model = LogisticRegression(C=10, max_iter=500).fit(features[: len(train)], train["label"])

    labels = held_out["label"].to_numpy()
    bayes = _losses(_bayes(folder, held_out), labels).mean()
    shares = np.bincount(train["label"]) / len(train)
    prior = _losses(np.tile(shares, (len(labels), 1)), labels).mean()
    reached = _losses(model.predict_proba(features[len(train) :]), labels).mean()
    assert bayes - 0.01 < reached < prior - (prior - bayes) / 2


def test_the_summary_agrees_with_the_files(folder: Path, tables: tuple[pd.DataFrame, pd.DataFrame]):
    summary = json.loads((folder / generate.SUMMARY_FILE).read_text())
    assert summary["seed"] == 0
    assert str(judge.TIES) in summary["rule"]
    for part, table in zip(("train", "test"), tables, strict=True):
        p = _bayes(folder, table)
        assert summary[part]["rows"] == len(table)
        assert list(summary[part]["classes"].values()) == table[CLASSES].sum().tolist()
        losses = summary[part]["bayes_log_loss"]
        assert losses["realised"] == pytest.approx(
            _losses(p, table["label"].to_numpy()).mean(), abs=1e-6
        )
        assert losses["expected"] == pytest.approx(-(p * np.log(p)).sum(axis=1).mean(), abs=1e-6)


# Writing


def test_another_process_with_other_arithmetic_writes_the_same_bytes(tmp_path: Path):
    here, there, other = tmp_path / "here", tmp_path / "there", tmp_path / "other"
    summary = generate.write_sample(here, rows=300, seed=7)
    assert summary == json.loads((here / generate.SUMMARY_FILE).read_text())

    # The other process computes exp and log without the instructions that numpy dispatches to here.
    dispatched = np.lib.introspect.opt_func_info(func_name="^(exp|log)$", signature="float64")
    features = {
        feature
        for signatures in dispatched.values()
        for targets in signatures.values()
        for feature in re.sub(r"baseline\(.*?\)", "", targets["available"]).split()
    }
    environment = os.environ | {
        "PYTHONHASHSEED": "12345",
        "NPY_DISABLE_CPU_FEATURES": " ".join(features),
    }
    code = (
        "import sys; from kit.sample.generate import write_sample; "
        "write_sample(sys.argv[1], rows=300, seed=7)"
    )
    subprocess.run([sys.executable, "-c", code, str(there)], check=True, env=environment)
    for name in generate.FILES:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name

    generate.write_sample(other, rows=300, seed=8)
    assert (here / task.TRAIN_FILE).read_bytes() != (other / task.TRAIN_FILE).read_bytes()


@pytest.mark.parametrize("rows", [1, 2, 7, 41, 199])
def test_any_number_of_rows_can_be_generated(tmp_path: Path, rows: int):
    generate.write_sample(tmp_path, rows, seed=rows)
    train, test = _read(tmp_path)
    assert (len(train), len(test)) == (rows, max(3, rows // 4))
    assert {path.name for path in tmp_path.iterdir()} == set(generate.FILES)


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path):
    (tmp_path / task.TRUTH_FILE).write_text("mine")
    with pytest.raises(KitError, match=r"truth\.csv.*exists"):
        generate.write_sample(tmp_path, rows=3)
    assert [path.name for path in tmp_path.iterdir()] == [task.TRUTH_FILE]

    generate.write_sample(tmp_path, rows=3, force=True)
    assert (tmp_path / task.TRUTH_FILE).read_text() != "mine"


@pytest.mark.parametrize(("rows", "seed"), [(0, 0), (-5, 0), (10, -1)])
def test_impossible_numbers_are_refused_before_anything_is_written(
    tmp_path: Path, rows: int, seed: int
):
    with pytest.raises(KitError, match="cannot be made"):
        generate.write_sample(tmp_path / "new", rows, seed)
    assert not (tmp_path / "new").exists()


def test_a_file_instead_of_the_output_folder_is_refused(tmp_path: Path):
    (tmp_path / "raw").write_text("")
    with pytest.raises(KitError, match="is a file"):
        generate.write_sample(tmp_path / "raw")
