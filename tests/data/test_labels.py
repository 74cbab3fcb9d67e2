"""Check soft labels and weights: reading, refusing, joining from predictions, training."""

import csv
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_recipe import QUICK

from kit.baselines.models import baseline_run_name
from kit.baselines.run import run_baseline
from kit.data.dataset import TRAIN_SCHEMA, Dataset, open_dataset
from kit.data.deduplicate import find_copies, find_duplicates, row_keys
from kit.data.preprocess import preprocess_files
from kit.data.rows import read_rows
from kit.errors import DataError
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.task import CLASSES, SOFT_LABELS, SWAP, TEXTS, WEIGHT
from kit.training.loss import r_drop_loss, summed_cross_entropy
from kit.training.train import train_recipe


def write(path: Path, rows: Iterable[dict[str, object]], columns: Iterable[str]) -> Path:
    """Write a file with these columns; rows without texts and ids get some."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", *TEXTS, *columns], restval="", lineterminator="\n")
        writer.writeheader()
        for number, row in enumerate(rows):
            texts = {name: json.dumps([f"{path.stem} {name} {number}"]) for name in TEXTS}
            writer.writerow({"id": 9000 + number, **texts, **row})
    return path


def soft(*probabilities: object) -> dict[str, object]:
    return dict(zip(SOFT_LABELS, probabilities, strict=True))


def hard(label: int) -> dict[str, object]:
    return {name: int(label == k) for k, name in enumerate(CLASSES)}


ALL_TARGETS = (*CLASSES, *SOFT_LABELS, WEIGHT)


def test_soft_labels_and_weights_are_read_with_the_label(tmp_path: Path):
    rows = [
        hard(1) | soft(0.5, 0.25, 0.25) | {WEIGHT: "2.5"},
        # Neither: the label with probability 1, and weight 1.
        hard(2),
        # No label: the likeliest class.
        soft("1e-1", 0.2, 0.7) | {WEIGHT: 0},
        soft(0.4, 0.4, 0.2),
    ]
    read = read_rows(
        write(tmp_path / "votes.csv", rows, ALL_TARGETS), labelled=True, label_required=False
    )
    assert read.targets.labels.tolist() == [1, 2, 2, 0]
    np.testing.assert_allclose(
        read.targets.soft, [[0.5, 0.25, 0.25], [0, 0, 1], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2]]
    )
    assert read.targets.weights.tolist() == [2.5, 1, 0, 1]
    assert not set(ALL_TARGETS) & set(read.ignored)


def test_a_file_with_soft_labels_needs_no_class_columns(tmp_path: Path):
    path = write(tmp_path / "pseudo.csv", [soft(0.2, 0.7, 0.1), soft(0, 0, 1)], SOFT_LABELS)
    assert read_rows(path, labelled=True, label_required=False).targets.labels.tolist() == [1, 2]
    with pytest.raises(DataError, match="no column winner_model_a"):
        read_rows(path, labelled=True)


def test_rounded_probabilities_are_divided_by_their_sum(tmp_path: Path):
    path = write(tmp_path / "rounded.csv", [soft(0.333, 0.333, 0.333)], SOFT_LABELS)
    np.testing.assert_allclose(
        read_rows(path, labelled=True, label_required=False).targets.soft, [[1 / 3] * 3], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        (soft(0.5, 0.6, 0.1), "add up to 1.2, not 1"),
        (soft(0, 0, 0), "add up to 0, not 1"),
        (soft(-0.5, 1, 0.5), "soft_label_winner_model_a is '-0.5', not a number of at least 0"),
        (soft(0.5, "nan", 0.5), "soft_label_winner_model_b is 'nan', not a number"),
        (soft(0.5, "inf", 0.5), "soft_label_winner_model_b is 'inf', not a number"),
        (soft(0.5, "", 0.5), "soft_label_winner_model_b is '', not a number"),
        (soft(0.5, "half", 0.5), "is 'half', not a number"),
        (soft("", "", ""), "not one-hot"),
        (hard(0) | {WEIGHT: "-1"}, "weight is '-1', not a number of at least 0"),
        (hard(0) | {WEIGHT: "heavy"}, "weight is 'heavy', not a number"),
        (hard(0) | {WEIGHT: "inf"}, "weight is 'inf', not a number"),
        (hard(0) | {WEIGHT: "1e39"}, "weight is 1e[+]39, neither 0 nor from 1e-06 to 1e[+]06"),
        (hard(0) | {WEIGHT: "1.1e6"}, "weight is 1.1e[+]06, neither 0 nor"),
        (hard(0) | {WEIGHT: "1e-46"}, "weight is 1e-46, neither 0 nor"),
    ],
)
def test_impossible_values_are_refused_with_row_and_id(
    tmp_path: Path, bad: dict[str, object], part: str
):
    path = write(tmp_path / "bad.csv", [hard(0) | soft(1, 0, 0), bad, hard(1)], ALL_TARGETS)
    with pytest.raises(DataError, match=part) as caught:
        read_rows(path, labelled=True, label_required=False)
    assert "bad.csv: row 3, id 9001: " in caught.value.problem
    assert caught.value.hint


def test_the_competitions_rows_need_a_label(tmp_path: Path):
    path = write(tmp_path / "train.csv", [hard(0), soft(1, 0, 0)], ALL_TARGETS)
    with pytest.raises(DataError, match="row 3, id 9001: not one-hot"):
        read_rows(path, labelled=True)


def test_two_of_three_columns_are_refused(tmp_path: Path):
    path = write(tmp_path / "two.csv", [hard(0)], (*CLASSES, *SOFT_LABELS[:2]))
    with pytest.raises(DataError, match="no column soft_label_winner_tie"):
        read_rows(path, labelled=True)


def test_rows_with_different_soft_labels_are_no_duplicates():
    import pyarrow as pa

    # Prompt, answers, label and soft labels in tenths.
    rows = [
        ("p", "x", "y", 0, (6, 3, 1)),
        ("p", "x", "y", 0, (6, 3, 1)),
        ("p", "x", "y", 0, (5, 4, 1)),
        ("p", "y", "x", 1, (3, 6, 1)),
        ("p", "y", "x", 1, (4, 6, 0)),
        ("q", "x", "x", 0, (6, 3, 1)),
        ("q", "x", "x", 1, (3, 6, 1)),
    ]
    *texts, labels, tenths = zip(*rows, strict=True)
    labels = np.array(labels)
    probabilities = np.array(tenths) / 10
    table = pa.table(
        {
            name: pa.array([[text] for text in column], pa.list_(pa.string()))
            for name, column in zip(TEXTS, texts, strict=True)
        }
    )
    keys, _ = row_keys(table, table.slice(0, 0))

    assert np.flatnonzero(find_duplicates(keys, labels)).tolist() == [1, 2, 4]
    assert np.flatnonzero(find_duplicates(keys, labels, probabilities)).tolist() == [1]
    assert np.flatnonzero(find_copies(keys, labels, probabilities)).tolist() == [1, 3, 6]


@pytest.fixture(scope="module")
def folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose rows have soft labels and weights, with pseudo-labelled extra rows."""
    import pandas as pd

    base = tmp_path_factory.mktemp("soft")
    table = pd.read_csv(raw / "train.csv", dtype=str, keep_default_na=False)
    for k, name in enumerate(SOFT_LABELS):
        cells = ["", "0.2", "0.5"] if k else ["", "0.6", "0"]
        table[name] = cells * (len(table) // 3)
    table[WEIGHT] = ["1", "0", "3"] * (len(table) // 3)
    table.to_csv(base / "train.csv", index=False)
    (base / "test.csv").write_bytes((raw / "test.csv").read_bytes())
    extra = write(base / "pseudo.csv", [soft(0.2, 0.7, 0.1), soft(0, 0, 1)], SOFT_LABELS)
    preprocess_files(base, base / "out", extra=[extra], folds=3, valid=0.2)
    return base


def test_soft_labels_and_weights_reach_the_processed_rows(folder: Path, processed: Dataset):
    opened = open_dataset(folder / "out")
    table = opened.train()
    assert table.schema.names == [*TRAIN_SCHEMA.names, *SOFT_LABELS, WEIGHT]
    targets = opened.targets()
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets.sum(1), table[WEIGHT].to_numpy(), rtol=1e-6)
    np.testing.assert_allclose(targets[-2:], [[0.2, 0.7, 0.1], [0, 0, 1]], rtol=1e-6)
    assert table["extra"].to_pylist()[-2:] == [True, True]
    assert opened.manifest["counts"]["rows_with_soft_labels"] > 100

    # The labels, on which models are scored, stay as they are.
    labels = table.to_pandas().set_index("id")["label"]
    before = processed.train().to_pandas().set_index("id")["label"]
    assert labels[before.index].tolist() == before.tolist()


def test_without_soft_labels_and_weights_the_targets_are_labels(processed: Dataset):
    assert processed.train().schema.equals(TRAIN_SCHEMA)
    assert processed.targets().tolist() == processed.train()["label"].to_pylist()


def test_rows_of_weight_0_are_validated_on_and_not_trained_on(folder: Path):
    opened = open_dataset(folder / "out")
    weights = opened.train()[WEIGHT].to_numpy()
    fit, valid = opened.fold_rows(0)
    assert weights[fit].min() > 0
    assert (weights[valid] == 0).any()


def test_a_fold_without_a_row_to_train_on_is_refused(raw: Path, tmp_path: Path):
    import pandas as pd

    preprocess_files(raw, tmp_path / "plain", folds=3, valid=0.2)
    plain = open_dataset(tmp_path / "plain").train().to_pandas().set_index("id")
    in_fold = plain["fold"] == 1

    table = pd.read_csv(raw / "train.csv", dtype=str, keep_default_na=False)
    table[WEIGHT] = [str(float(in_fold.get(number, False))) for number in table["id"].astype(int)]
    table.to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "test.csv").write_bytes((raw / "test.csv").read_bytes())
    preprocess_files(tmp_path, tmp_path / "out", folds=3, valid=0.2)

    opened = open_dataset(tmp_path / "out")
    assert len(opened.fold_rows(0)[0]) == in_fold.sum()
    with pytest.raises(DataError, match="no row outside fold 1 has a weight above 0"):
        opened.fold_rows(1)


def test_a_model_trains_on_soft_labels_and_weights(folder: Path, tmp_path: Path):
    overrides = (
        *QUICK,
        "train.max_steps=3",
        "train.micro_batch_size=8",
        "train.swap_augmentation=true",
    )
    result = train_recipe(
        load_recipe("tiny-electra", (*overrides, "model.head=fusion")), folder / "out", tmp_path
    )
    part = result["parts"]["holdout"]
    assert np.isfinite(part["log_loss"])
    assert part["train_rows"] == len(open_dataset(folder / "out").fold_rows("holdout")[0])


def test_a_baseline_learns_from_soft_labels_and_weights(folder: Path, tmp_path: Path):
    opened = open_dataset(folder / "out")
    part = run_baseline("prior", folder / "out", tmp_path)["parts"]["holdout"]
    shares = opened.targets()[opened.fold_rows("holdout")[0]].sum(0)
    found = read_predictions(tmp_path / baseline_run_name("prior") / "test.csv")[
        list(CLASSES)
    ].to_numpy()
    np.testing.assert_allclose(found, np.tile(shares / shares.sum(), (len(found), 1)), rtol=1e-5)
    labels = opened.train()["label"].to_numpy()[opened.fold_rows("holdout")[1]]
    assert part["log_loss"] == pytest.approx(-np.log(found[0][labels]).mean())


def test_predictions_become_the_soft_labels_of_their_rows(raw: Path, tmp_path: Path):
    ids = read_rows(raw / "train.csv", labelled=True).ids
    extra = write(tmp_path / "unlabelled.csv", [{}, {}], ())
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], len(ids))
    write_predictions(make_predictions(ids[10:], probabilities[10:]), tmp_path / "oof.csv")
    write_predictions(
        make_predictions(np.array([9001, 9000]), [[0.1, 0.1, 0.8], [0.3, 0.6, 0.1]]),
        tmp_path / "pseudo.csv",
    )
    frames = [tmp_path / "oof.csv", tmp_path / "pseudo.csv"]
    preprocess_files(raw, tmp_path / "out", extra=[extra], soft_labels=frames)

    table = open_dataset(tmp_path / "out").train().to_pandas().set_index("id")
    kept = [number for number in ids if number in table.index]
    sure = np.eye(3)[read_rows(raw / "train.csv", labelled=True).targets.labels]
    expected = dict(zip(ids, np.concatenate([sure[:10], probabilities[10:]]), strict=True))
    np.testing.assert_allclose(
        table.loc[kept, list(SOFT_LABELS)], [expected[number] for number in kept], atol=1e-12
    )
    assert table.loc[[9000, 9001], "label"].tolist() == [1, 2]
    assert preprocess_files(raw, tmp_path / "out", extra=[extra], soft_labels=frames)["reused"]


def test_a_student_has_the_rows_and_folds_of_its_teacher(raw: Path, tmp_path: Path):
    import pandas as pd

    table = pd.read_csv(raw / "train.csv", dtype=str, keep_default_na=False)
    twins = table.iloc[:20].assign(id=range(70_000, 70_020))
    pd.concat([table, twins]).to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "test.csv").write_bytes((raw / "test.csv").read_bytes())
    turned = {
        "response_a": "response_b",
        "response_b": "response_a",
        CLASSES[0]: CLASSES[1],
        CLASSES[1]: CLASSES[0],
    }
    copies = table.iloc[20:40].rename(columns=turned).assign(id=range(80_000, 80_020))
    others = [hard(k % 3) for k in range(6)]
    extra = [write(tmp_path / "more.csv", [*others, *others], CLASSES), tmp_path / "copies.csv"]
    copies.to_csv(extra[1], index=False)
    asked = [{name: json.dumps([name]) for name in TEXTS} | {"id": 60_000 + k} for k in range(2)]
    extra.append(write(tmp_path / "unlabelled.csv", [*asked, {"id": 60_002}], ()))

    teacher = preprocess_files(tmp_path, tmp_path / "teacher", extra=extra[:2], folds=3, valid=0.2)
    rows = open_dataset(tmp_path / "teacher").train().to_pandas()
    assert teacher["counts"]["duplicates_dropped"] >= 20
    assert teacher["counts"]["extra_duplicates_dropped"] >= 20
    ids = np.append(rows["id"][~rows["extra"]], range(60_000, 60_003))
    write_predictions(
        make_predictions(ids, np.random.default_rng(0).dirichlet([1, 1, 1], len(ids))),
        tmp_path / "predictions.csv",
    )

    student = preprocess_files(
        tmp_path,
        tmp_path / "student",
        extra=extra,
        soft_labels=[tmp_path / "predictions.csv"],
        folds=3,
        valid=0.2,
    )
    found = open_dataset(tmp_path / "student").train().to_pandas()
    same = [name for name in TRAIN_SCHEMA.names if name not in TEXTS]
    pd.testing.assert_frame_equal(found[same].iloc[: len(rows)], rows[same])
    # Of two unlabelled rows with the same texts one is dropped.
    assert found["id"].tolist()[len(rows) :] == [60_000, 60_002]
    assert student["counts"]["duplicates_dropped"] == teacher["counts"]["duplicates_dropped"]
    assert (found[list(SOFT_LABELS)].to_numpy()[~found["extra"]].max(1) < 1).all()


@pytest.mark.parametrize("files", [1, 2])
def test_duplicate_ids_of_unlabelled_rows_are_refused(files: int, raw: Path, tmp_path: Path):
    rows = [{"id": 60_000}, {"id": 60_001}, {"id": 60_000}]
    parts = [rows] if files == 1 else [rows[:2], rows[2:]]
    extra = [write(tmp_path / f"part{number}.csv", part, ()) for number, part in enumerate(parts)]
    write_predictions(
        make_predictions(np.array([60_000, 60_001]), np.full((2, 3), 1 / 3)),
        tmp_path / "predictions.csv",
    )
    with pytest.raises(
        DataError, match="id 60000: duplicate id in the extra rows without labels"
    ) as caught:
        preprocess_files(
            raw, tmp_path / "out", extra=extra, soft_labels=[tmp_path / "predictions.csv"]
        )
    assert f"part{files - 1}.csv: row {2 if files == 2 else 4}" in caught.value.problem


@pytest.mark.parametrize(
    ("ids", "part"),
    [
        ([9000], r"unlabelled.csv: row 3, id 9001: no label, and no prediction"),
        (
            [9000, 9001, 123456789],
            "predictions.csv: row 4, id 123456789: this id is neither in train.csv nor",
        ),
    ],
)
def test_predictions_that_do_not_fit_the_rows_are_refused(
    raw: Path, tmp_path: Path, ids: list[int], part: str
):
    extra = write(tmp_path / "unlabelled.csv", [{}, {}], ())
    write_predictions(
        make_predictions(np.array(ids), np.full((len(ids), 3), 1 / 3)), tmp_path / "predictions.csv"
    )
    with pytest.raises(DataError, match=part):
        preprocess_files(
            raw, tmp_path / "out", extra=[extra], soft_labels=[tmp_path / "predictions.csv"]
        )


def test_an_unlabelled_row_needs_an_id_that_a_prediction_can_name(raw: Path, tmp_path: Path):
    extra = write(tmp_path / "unlabelled.csv", [{}, {"id": "c4f0a2"}], ())
    predictions = make_predictions(np.array([9000]), np.full((1, 3), 1 / 3))
    write_predictions(predictions, tmp_path / "predictions.csv")
    with pytest.raises(DataError, match=r"row 3.*the id is not a whole number"):
        preprocess_files(
            raw, tmp_path / "out", extra=[extra], soft_labels=[tmp_path / "predictions.csv"]
        )


def test_an_id_of_a_labelled_and_an_unlabelled_row_is_refused(raw: Path, tmp_path: Path):
    number = int(read_rows(raw / "train.csv", labelled=True).ids[0])
    extra = write(tmp_path / "unlabelled.csv", [{"id": number}], ())
    write_predictions(
        make_predictions(np.array([number]), [[1, 0, 0]]), tmp_path / "predictions.csv"
    )
    with pytest.raises(
        DataError, match=f"id {number}: this id is in train.csv and in an extra file"
    ):
        preprocess_files(
            raw, tmp_path / "out", extra=[extra], soft_labels=[tmp_path / "predictions.csv"]
        )


def test_rows_without_labels_need_predictions(raw: Path, tmp_path: Path):
    extra = write(tmp_path / "unlabelled.csv", [{}], ())
    with pytest.raises(DataError, match="no column winner_model_a"):
        preprocess_files(raw, tmp_path / "out", extra=[extra])


LOGITS = st.lists(
    st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(LOGITS, st.floats(0, 0.5), st.data())
def test_a_row_of_weight_2_counts_as_two(values: list, smoothing: float, data: st.DataObject):
    logits = torch.tensor(values)
    weights = torch.tensor(
        data.draw(st.lists(st.integers(1, 4), min_size=len(values), max_size=len(values)))
    )
    soft = torch.from_numpy(
        np.random.default_rng(len(values)).dirichlet([1, 1, 1], len(values)).astype(np.float32)
    )
    weighted = summed_cross_entropy(logits, soft * weights[:, None], weights.sum(), smoothing)
    repeated = summed_cross_entropy(
        logits.repeat_interleave(weights, 0),
        soft.repeat_interleave(weights, 0),
        weights.sum(),
        smoothing,
    )
    assert weighted.item() == pytest.approx(repeated.item(), rel=1e-5, abs=1e-6)
    two = r_drop_loss(partial(summed_cross_entropy, smoothing=smoothing), 0.5)
    passes = (logits, logits.flip(1))
    weighted = two(passes, soft * weights[:, None], num_items_in_batch=weights.sum())
    passes = [part.repeat_interleave(weights, 0) for part in passes]
    repeated = two(passes, soft.repeat_interleave(weights, 0), num_items_in_batch=weights.sum())
    assert weighted.item() == pytest.approx(repeated.item(), rel=1e-5, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(LOGITS, st.floats(0, 0.5))
def test_a_certain_soft_label_equals_the_label(values: list, smoothing: float):
    logits = torch.tensor(values)
    labels = torch.arange(len(values)) % 3
    sure = torch.eye(3)[labels]
    expected = summed_cross_entropy(logits, labels, len(values), smoothing)
    assert summed_cross_entropy(logits, sure, len(values), smoothing).item() == pytest.approx(
        expected.item(), rel=1e-5
    )

    both = torch.stack([logits, logits[:, list(SWAP)]], 1)
    straight, turned = (
        summed_cross_entropy(part, sure, len(values), smoothing) for part in both.unbind(1)
    )
    found = summed_cross_entropy(both, sure, len(values), smoothing)
    assert found.item() == pytest.approx((straight + turned).item() / 2, rel=1e-5)
