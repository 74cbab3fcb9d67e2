"""Check what preprocessing drops, keeps and counts, and that its folder is complete or refused."""

import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data import clean
from kit.data import preprocess as pipeline
from kit.data.dataset import MANIFEST, TEST_SCHEMA, TRAIN_SCHEMA, open_dataset
from kit.data.deduplicate import inherit_split, merge_rows
from kit.data.labels import Targets
from kit.data.preprocess import prepare_input, preprocess_files
from kit.data.rows import RawRows
from kit.data.verify import verify_dataset
from kit.errors import DataError, KitError
from kit.storage.atomic import file_sha256
from kit.task import CLASSES, PREDICTION_COLUMNS, SWAP, TEST_COLUMNS, TEXTS, TRAIN_COLUMNS

# id, prompt, response_a, response_b, label
Row = tuple[int, list, list, list, int]
OUTPUTS = ("train.parquet", "test.parquet", MANIFEST)


def write_train(path: Path, rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TRAIN_COLUMNS)
        for number, *texts, label in rows:
            writer.writerow(
                [number, "x", "y", *map(json.dumps, texts), *(int(label == k) for k in range(3))]
            )
    return path


def write_test(path: Path, rows: Iterable[tuple[int, list, list, list]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TEST_COLUMNS)
        writer.writerows([number, *map(json.dumps, texts)] for number, *texts in rows)
    return path


def row(
    number: int, prompt: str | None = None, label: int | None = None, a: str = "", b: str = ""
) -> Row:
    """Return a row whose texts differ from those of all others, unless they are given."""
    label = number % 3 if label is None else label
    return number, [prompt or f"prompt {number}"], [a or f"a{number}"], [b or f"b{number}"], label


SHARED = [row(900 + i, ("What is  LOVE?", "what is love?\n")[i % 2]) for i in range(12)]
PLAIN = [row(i) for i in range(60)] + SHARED
TEST = [
    (5001, ["unseen"], ["x"], ["y"]),
    (17_000, ["Prompt  3"], ["x"], ["y"]),
    (5000, ["héllo"], ["a  b"], ["é"]),
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    write_train(folder / "train.csv", PLAIN)
    write_test(folder / "test.csv", TEST)
    return folder


def file_digests(folder: Path) -> list[str]:
    return [file_sha256(folder / name) for name in OUTPUTS]


def test_processed_rows_equal_the_raw_rows(raw: Path, tmp_path: Path) -> None:
    manifest = preprocess_files(raw, tmp_path / "out")
    opened = open_dataset(tmp_path / "out")
    train, test = opened.train(), opened.test()
    assert train.schema.equals(TRAIN_SCHEMA)
    assert test.schema.equals(TEST_SCHEMA)
    assert train.select(["id", *TEXTS, "label"]).to_pylist() == [
        dict(zip(["id", *TEXTS, "label"], r, strict=True)) for r in PLAIN
    ]
    assert test.select(list(TEST_COLUMNS)).to_pylist() == [
        dict(zip(TEST_COLUMNS, r, strict=True)) for r in TEST
    ]
    assert not train["extra"].to_numpy().any()

    assert manifest["counts"]["train_rows"] == manifest["counts"]["train_rows_read"] == len(PLAIN)
    assert list(manifest["classes"].values()) == [24, 24, 24]
    assert sum(manifest["frequencies"].values()) == pytest.approx(1)


def test_groups_are_normalised_prompts_and_shared_with_the_test_rows(
    raw: Path, tmp_path: Path
) -> None:
    preprocess_files(raw, tmp_path / "out")
    opened = open_dataset(tmp_path / "out")
    train = opened.train()

    group = dict(zip(train["id"].to_pylist(), train["group"].to_pylist(), strict=True))
    assert len({group[r[0]] for r in SHARED}) == 1
    assert len(set(group.values())) == 61
    assert opened.test()["group"].to_pylist()[1] == group[3]
    assert opened.manifest["counts"]["prompt_groups"] == 61
    assert opened.manifest["counts"]["competition_rows_with_a_test_prompt"] == 1


def test_the_same_input_gives_the_same_bytes_in_any_folder(raw: Path, tmp_path: Path) -> None:
    preprocess_files(raw, tmp_path / "one")
    preprocess_files(raw.rename(tmp_path / "elsewhere"), tmp_path / "deep" / "two")
    assert file_digests(tmp_path / "one") == file_digests(tmp_path / "deep" / "two")
    assert str(tmp_path) not in (tmp_path / "one" / MANIFEST).read_text()


def test_a_current_folder_is_not_written_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = preprocess_files(raw, tmp_path / "out")
    monkeypatch.setattr(pipeline, "read_rows", lambda *_, **__: pytest.fail("recomputed"))
    second = preprocess_files(raw, tmp_path / "out")
    assert (first.pop("reused"), second.pop("reused")) == (False, True)
    assert first == second == json.loads((tmp_path / "out" / MANIFEST).read_text())


@pytest.mark.parametrize(
    "options",
    [
        {"text": "ascii"},
        {"split": "stratified"},
        {"folds": 3},
        {"valid": 0.2},
        {"seed": 1},
        {"allow_test_prompts": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_options_rewrite_the_folder(options: dict, raw: Path, tmp_path: Path) -> None:
    preprocess_files(raw, tmp_path / "out")
    assert not preprocess_files(raw, tmp_path / "out", **options)["reused"]
    preprocess_files(raw, tmp_path / "fresh", **options)
    assert file_digests(tmp_path / "out") == file_digests(tmp_path / "fresh")


def test_a_changed_input_or_output_rewrites_the_folder(raw: Path, tmp_path: Path) -> None:
    preprocess_files(raw, tmp_path / "out")
    (tmp_path / "out" / "test.parquet").write_bytes(b"")
    assert not preprocess_files(raw, tmp_path / "out")["reused"]
    write_train(raw / "train.csv", PLAIN[1:])
    assert preprocess_files(raw, tmp_path / "out")["counts"]["train_rows"] == len(PLAIN) - 1
    (tmp_path / "out" / MANIFEST).write_text("{")
    assert not preprocess_files(raw, tmp_path / "out")["reused"]


def test_exact_duplicates_are_dropped_but_not_swapped_copies_nor_conflicts(
    raw: Path, tmp_path: Path
) -> None:
    number, prompt, a, b, label = PLAIN[0]
    # A duplicate, a swapped copy, a conflicting label, and two other prompts.
    added = [
        (101, prompt, a, b, label),
        (102, prompt, b, a, SWAP[label]),
        (103, prompt, a, b, (label + 1) % 3),
        (104, ["PROMPT 0"], a, b, label),
        (105, [*prompt, ""], a, b, label),
    ]
    write_train(raw / "train.csv", [*PLAIN, *added])
    manifest = preprocess_files(raw, tmp_path / "out")
    train = open_dataset(tmp_path / "out").train()
    ids = train["id"].to_pylist()
    assert number in ids
    assert [i for i in ids if 100 < i < 110] == [102, 103, 104, 105]

    group = dict(zip(ids, train["group"].to_pylist(), strict=True))
    assert len({group[i] for i in (number, 102, 103, 104, 105)}) == 1
    assert manifest["counts"]["duplicates_dropped"] == 1
    assert manifest["counts"]["rows_with_a_swapped_copy"] == 3
    assert manifest["counts"]["rows_with_conflicting_labels"] == 2


TINY = st.lists(st.sampled_from(["", "x", "y", "xx"]), min_size=1, max_size=2)


@given(
    st.lists(st.tuples(TINY, TINY, TINY, st.integers(0, 2)), min_size=1, max_size=30),
    st.integers(0, 30),
)
@settings(deadline=None, max_examples=150)
def test_copies_and_conflicts_are_those_that_a_loop_over_rows_finds(rows: list, own: int) -> None:
    def as_raw_rows(subset: list) -> RawRows:
        columns = zip(TEXTS, zip(*[r[:3] for r in subset], strict=True), strict=True)
        texts = {
            name: pa.chunked_array([pa.array(column, clean.TURNS)]) for name, column in columns
        }
        targets = Targets(np.array([r[3] for r in subset], np.int8))
        return RawRows(np.arange(len(subset)), pa.table(texts), targets, (), Counter())

    own = min(own, len(rows) - 1) + 1
    train = as_raw_rows(rows[:own])
    test = as_raw_rows([(["no"], ["no"], ["no"], 0)])
    extras = [as_raw_rows(rows[own:])] if rows[own:] else []
    merged = merge_rows(train, test, extras, allow_test_prompts=False)

    kept: list[tuple] = []
    for number, (p, a, b, label) in enumerate(rows):
        row, turned = (*map(tuple, (p, a, b)), label), (*map(tuple, (p, b, a)), SWAP[label])
        stays = row not in kept and (number < own or turned not in kept)
        assert merged.keep[number] == stays
        kept += [row] * stays

    texts = [row[:3] for row in kept]
    assert merged.counts["rows_with_conflicting_labels"] == sum(texts.count(t) > 1 for t in texts)
    swapped = sum(a != b and (p, b, a) in texts for p, a, b in texts)
    assert merged.counts["rows_with_a_swapped_copy"] == swapped


def test_both_text_forms_have_the_same_rows_groups_and_splits(raw: Path, tmp_path: Path) -> None:
    chinese = [row(200 + i, prompt="中" * (i + 1), label=0, a="是", b="不") for i in range(20)]
    write_train(raw / "train.csv", [*PLAIN, *chinese])
    tables = []
    for text in ("unicode", "ascii"):
        preprocess_files(raw, tmp_path / text, text=text)
        tables.append(open_dataset(tmp_path / text).train())
    rest = ["id", "label", "group", "valid", "fold", "extra"]
    assert tables[0].select(rest).equals(tables[1].select(rest))
    assert tables[1]["prompt"].to_pylist()[-1] == [""]
    assert open_dataset(tmp_path / "ascii").test()["response_a"].to_pylist()[2] == ["a b"]


def test_extra_rows_are_merged_without_copies_and_without_test_prompts(
    raw: Path, tmp_path: Path
) -> None:
    number, prompt, a, b, label = PLAIN[1]
    extra = write_train(
        tmp_path / "more.csv",
        [
            (300, prompt, a, b, label),  # a copy
            (301, prompt, b, a, SWAP[label]),  # a swapped copy
            (302, prompt, b, a, (SWAP[label] + 1) % 3),  # another label
            (303, ["  UNSEEN "], a, b, 0),  # a test prompt
            (304, ["new"], a, b, 0),
            (305, ["new"], b, a, 1),  # a swapped copy of the row before
            (number, ["newer"], a, b, 2),  # the id of a training row
            (5001, ["newest"], a, b, 2),  # the id of a test row
            (306, ["one id"], a, b, 2),
            (306, ["twice"], a, b, 2),
        ],
    )
    manifest = preprocess_files(raw, tmp_path / "out", extra=[extra])
    train = open_dataset(tmp_path / "out").train()
    rows = [r for r in train.to_pylist() if r["extra"]]
    assert [r["id"] for r in rows] == [302, 304, 17001, 17002, 306, 17003]
    others = [["new"], ["newer"], ["newest"], ["one id"], ["twice"]]
    assert [r["prompt"] for r in rows] == [prompt, *others]

    counts = manifest["counts"]
    assert (counts["extra_rows_read"], counts["extra_rows"]) == (10, 6)
    assert counts["extra_duplicates_dropped"] == 3
    assert (counts["extra_test_prompts_dropped"], counts["extra_ids_renumbered"]) == (1, 3)

    first = next(r for r in train.to_pylist() if r["id"] == number)
    assert (rows[0]["fold"], rows[0]["valid"]) == (first["fold"], first["valid"])
    assert {(r["fold"], r["valid"]) for r in rows[1:]} == {(-1, False)}
    assert sum(manifest["classes"].values()) == len(PLAIN)


def test_extra_rows_with_ids_that_are_no_numbers_are_numbered_anew(
    raw: Path, tmp_path: Path
) -> None:
    """Ids of other data sets are often texts, such as those of Chatbot Arena's conversations."""
    extra = write_train(tmp_path / "more.csv", [row(300 + i, f"new {i}") for i in range(4)])
    text = extra.read_text(encoding="utf-8")
    for number, other in ((300, "c4f0a2"), (301, ""), (302, "9" * 30)):
        text = text.replace(f"\n{number},", f"\n{other},")
    extra.write_text(text, encoding="utf-8")

    manifest = preprocess_files(raw, tmp_path / "out", extra=[extra])
    train = open_dataset(tmp_path / "out").train()
    rows = [r for r in train.to_pylist() if r["extra"]]
    assert [r["prompt"] for r in rows] == [[f"new {i}"] for i in range(4)]
    assert [r["id"] for r in rows] == [17001, 17002, 17003, 303]
    assert manifest["counts"]["extra_ids_renumbered"] == 3


def test_an_extra_row_with_a_test_prompt_is_kept_only_if_allowed(raw: Path, tmp_path: Path) -> None:
    extra = write_train(tmp_path / "more.csv", [row(300, "Unseen")])
    for allowed in (False, True):
        manifest = preprocess_files(
            raw, tmp_path / "out", extra=[extra], allow_test_prompts=allowed
        )
        assert manifest["counts"]["extra_rows"] == int(allowed)


def test_extra_rows_do_not_change_the_competitions_rows(raw: Path, tmp_path: Path) -> None:
    extra = write_train(
        tmp_path / "more.csv", [row(300 + i, f"prompt {i // 2}") for i in range(100)]
    )
    preprocess_files(raw, tmp_path / "without")
    preprocess_files(raw, tmp_path / "with", extra=[extra])
    own = open_dataset(tmp_path / "with").train().slice(0, len(PLAIN))
    assert own.equals(open_dataset(tmp_path / "without").train())


def test_extra_rows_are_trained_on_and_never_validated_on(raw: Path, tmp_path: Path) -> None:
    extra = write_train(tmp_path / "more.csv", [row(300 + i, f"prompt {i}") for i in range(80)])
    preprocess_files(raw, tmp_path / "out", extra=[extra], folds=4)
    opened = open_dataset(tmp_path / "out")
    train = opened.train()
    group = train["group"].to_numpy()
    is_extra = train["extra"].to_numpy()

    validated = []
    for fold in ("holdout", 0, 1, 2, 3):
        fit, valid = opened.fold_rows(fold)
        assert not is_extra[valid].any()
        assert is_extra[fit].any()
        assert not set(group[fit]) & set(group[valid])
        column = (
            train["valid"].to_numpy() if fold == "holdout" else train["fold"].to_numpy() == fold
        )
        assert np.array_equal(fit, np.flatnonzero(~column))
        validated += [] if fold == "holdout" else valid.tolist()
    assert sorted(validated) == np.flatnonzero(~is_extra).tolist()


@pytest.mark.parametrize("fold", [5, -1, "valid", 1.0])
def test_an_unknown_fold_is_an_error_that_names_the_known_ones(
    fold: object, raw: Path, tmp_path: Path
) -> None:
    preprocess_files(raw, tmp_path / "out")
    with pytest.raises(DataError, match=r"has no fold .*, only 0 to 4 and 'holdout'"):
        open_dataset(tmp_path / "out").fold_rows(fold)


def test_the_bayes_file_is_copied_and_removed_with_its_source(raw: Path, tmp_path: Path) -> None:
    preprocess_files(raw, tmp_path / "out")
    assert open_dataset(tmp_path / "out").bayes_file() is None
    (raw / "bayes.csv").write_text("id\n1\n")
    preprocess_files(raw, tmp_path / "out")
    assert open_dataset(tmp_path / "out").bayes_file().read_text() == "id\n1\n"
    (raw / "bayes.csv").unlink()
    preprocess_files(raw, tmp_path / "out")
    assert open_dataset(tmp_path / "out").bayes_file() is None
    assert not (tmp_path / "out" / "bayes.csv").exists()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5001, 17000, 5000], None),
        ([5000, 5001, 17000], None),
        (
            [5001, 17000, 1],
            r"sample_submission.csv: row 4, id 1: this id is not in .*test.csv\n.*kit download",
        ),
        (
            [5001, 17000],
            r"test.csv: row 4, id 5000: this id is not in .*sample_submission.csv\n.*kit download",
        ),
    ],
)
def test_the_sample_submission_must_have_the_test_ids(
    ids: list[int], message: str | None, raw: Path, tmp_path: Path
) -> None:
    with (raw / "sample_submission.csv").open("w", newline="") as file:
        csv.writer(file).writerows([PREDICTION_COLUMNS, *([i, 0.3, 0.3, 0.4] for i in ids)])
    if message is None:
        assert preprocess_files(raw, tmp_path / "out")["counts"]["test_rows"] == 3
    else:
        with pytest.raises(DataError, match=message):
            preprocess_files(raw, tmp_path / "out")


@pytest.mark.parametrize("name", ["train.csv", "test.csv"])
def test_a_missing_raw_file_names_the_commands_that_make_it(
    name: str, raw: Path, tmp_path: Path
) -> None:
    (raw / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file\n.*kit download.*kit sample"):
        preprocess_files(raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "latin"}, "--text is 'latin'"),
        ({"split": "random"}, "--split is 'random'"),
        ({"folds": 1}, "--folds is 1"),
        ({"valid": 0}, "--valid is 0"),
        ({"valid": float("nan")}, "--valid is nan"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_an_option_out_of_range_is_named(
    options: dict, message: str, raw: Path, tmp_path: Path
) -> None:
    with pytest.raises(KitError, match=message):
        preprocess_files(raw, tmp_path / "out", **options)


def test_the_raw_folder_and_a_file_are_refused_as_output_folder(raw: Path) -> None:
    with pytest.raises(KitError, match="is the raw folder"):
        preprocess_files(raw, raw / ".." / "raw")
    with pytest.raises(KitError, match="is a file"):
        preprocess_files(raw, raw / "train.csv")


def test_a_faulty_input_leaves_an_earlier_result_unchanged(raw: Path, tmp_path: Path) -> None:
    preprocess_files(raw, tmp_path / "out")
    before = file_digests(tmp_path / "out")
    write_train(raw / "train.csv", [*PLAIN, PLAIN[0]])
    with pytest.raises(DataError, match=r"duplicate id 0 \(rows 2 and 74\)"):
        preprocess_files(raw, tmp_path / "out")
    assert file_digests(tmp_path / "out") == before


@pytest.mark.parametrize("text", ["unicode", "ascii"])
def test_a_broken_invariant_is_a_bug_in_kit_and_leaves_no_manifest(
    text: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess_files(raw, tmp_path / "out", text=text)
    monkeypatch.setattr(
        pipeline, "split_folds", lambda labels, *_: (np.arange(len(labels)) % 5).astype(np.int16)
    )
    with pytest.raises(
        AssertionError, match=r"bug in kit.*no prompt group crosses a fold or the holdout"
    ):
        preprocess_files(raw, tmp_path / "out", text=text, seed=1)
    with pytest.raises(DataError, match=r"has not finished\n.*kit preprocess"):
        open_dataset(tmp_path / "out")


def test_every_invariant_is_checked_on_the_written_files(raw: Path, tmp_path: Path) -> None:
    manifest = preprocess_files(raw, tmp_path / "out")
    train_ids = np.array([r[0] for r in PLAIN])
    test_ids = np.array([r[0] for r in TEST])
    verify_dataset(tmp_path / "out", manifest, train_ids, test_ids)

    def check_broken(invariant: str, broken: dict, train: np.ndarray, test: np.ndarray) -> None:
        with pytest.raises(AssertionError, match=f"bug in kit.*{invariant}"):
            verify_dataset(tmp_path / "out", broken, train, test)

    check_broken("test ids are the input's", manifest, train_ids, test_ids[::-1])
    check_broken("competition rows are the input's, in order", manifest, train_ids[::-1], test_ids)
    counts = manifest["counts"]
    options = manifest["options"]
    for changed, invariant in (
        ({"counts": counts | {"duplicates_dropped": 1}}, "competition rows add up"),
        ({"counts": counts | {"extra_rows_read": 1}}, "extra rows add up"),
        ({"counts": counts | {"test_rows": 2}}, "written rows are counted"),
        ({"classes": dict.fromkeys(CLASSES, 1)}, "classes are counted"),
        ({"folds": manifest["folds"][1:]}, "folds are counted"),
        ({"options": options | {"folds": 6}}, "every competition row has a fold"),
        ({"options": options | {"folds": 4}}, "an extra row has a fold or none"),
    ):
        check_broken(invariant, manifest | changed, train_ids, test_ids)


def test_an_incomplete_folder_is_refused_with_the_command_to_run(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"no such folder\n.*Run `kit preprocess"):
        open_dataset(out)

    preprocess_files(raw, out)
    (out / "train.parquet").write_bytes((out / "test.parquet").read_bytes())
    with pytest.raises(
        DataError,
        match=r"train.parquet: the file was changed.*manifest.json.*\n.*Run `kit preprocess",
    ):
        open_dataset(out)

    foreign_file = '{"outputs": {"../train.csv": ""}, "options": {"folds": 5}}'
    for text in ("", "[]", '{"outputs": {}}', foreign_file):
        (out / MANIFEST).write_text(text)
        with pytest.raises(DataError, match=r"no readable manifest.json"):
            open_dataset(out)


@pytest.mark.parametrize("text", ["unicode", "ascii"])
def test_prediction_input_is_cleaned_as_the_test_rows_are(
    text: str, raw: Path, tmp_path: Path
) -> None:
    preprocess_files(raw, tmp_path / "out", text=text)
    opened = open_dataset(tmp_path / "out")
    assert prepare_input(raw / "test.csv", text).equals(opened.test().drop_columns("group"))
    assert prepare_input(raw / "train.csv", text).equals(opened.train().select(list(TEST_COLUMNS)))


def test_rows_in_several_row_groups_keep_their_order(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_train(raw / "train.csv", [*PLAIN[:30], (990, *PLAIN[3][1:]), *PLAIN[30:]])
    preprocess_files(raw, tmp_path / "one")
    monkeypatch.setattr(pipeline, "ROW_GROUP", 7)
    preprocess_files(raw, tmp_path / "many")
    one, many = (open_dataset(tmp_path / name).train() for name in ("one", "many"))
    assert one.equals(many)
    assert one["id"].to_pylist() == [r[0] for r in PLAIN]


def test_rows_without_a_repeated_prompt_have_no_copies(raw: Path, tmp_path: Path) -> None:
    write_train(raw / "train.csv", [row(i, a="same", b="same") for i in range(60)])
    write_test(raw / "test.csv", TEST[:1])
    counts = preprocess_files(raw, tmp_path / "out")["counts"]
    assert counts["duplicates_dropped"] == counts["rows_with_a_swapped_copy"] == 0
    assert counts["prompt_groups"] == 60


def test_an_unknown_group_gets_the_default() -> None:
    groups = np.array([4, 2, 4])
    values = np.array([7, 8, 9])
    inherited = inherit_split(groups, values, np.array([2, 3, 4, 9, 0]), -1)
    assert inherited.tolist() == [8, -1, 7, -1, -1]
