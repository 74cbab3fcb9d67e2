"""Gather what a report compares: choose the rows, and read the models that have predicted them.

Use `gather_inputs`, and `is_truth_for` to know whether a truth file is of a report's rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from kit.data.dataset import MANIFEST, Dataset, open_dataset
from kit.ensembling.members import refuse_repeated_paths
from kit.errors import DataError
from kit.evaluation.truth import read_truth, restrict_truth, row_positions
from kit.predictions import read_predictions
from kit.reporting.blend_models import has_members, read_blend_model
from kit.reporting.inputs import ReportInputs
from kit.reporting.left_out import LeftOut, describe_foreign, next_training
from kit.reporting.models import (
    ModelSource,
    ReportModel,
    has_baseline_run,
    read_file_sources,
    read_run_sources,
    reference_models,
)
from kit.reporting.rows import (
    LABELLED,
    OOF,
    Parts,
    ReportRows,
    Resampled,
    choose_parts,
    list_folds,
    name_parts,
)
from kit.run import Run
from kit.task import GROUP, HOLDOUT, ID, LABEL


def gather_inputs(
    runs: Sequence[str | Path],
    data: Path,
    *,
    frames: Sequence[tuple[str, Path]] = (),
    blends: Sequence[Path] = (),
    truth: Path | None = None,
) -> ReportInputs:
    """Read runs, prediction files and saved blends, and add the references.

    Models are compared on the validation rows that most of them have predicted (see
    `rows.choose_parts`). Those without these rows form groups by the rows that they share.

    The references are uniform, the class prior and, for the embedded sample, the Bayes floor. A
    baseline run of the same kind replaces uniform or the class prior, if it predicted the same
    splits.

    Args:
        runs: run directories, or none. Validation predictions are those that training left, test
            predictions those of the run's test.csv.
        data: the processed folder that the runs were trained on. Prediction files with a truth
            need none.
        frames: (name, file) of further predictions. The ids decide whether a file is of validation
            or of test rows; files of one name are one model.
        blends: saved blends of the runs and frames.
        truth: a file with the labels of the test rows, where they are known.

    Raises:
        RunError: no run has a finished part or was trained on these rows, or a run is not whole.
        DataError: a frame is of other rows, the truth does not match the test rows, two models
            have one name, one file has two names, a blend's member is missing, or there are no
            predictions of rows with labels.
    """
    # A copy may be meant, such as a blend in which one member has all the weight.
    refuse_repeated_paths([file for _, file in frames], copies=False)
    if truth and not runs and not _is_truth_of(data, truth):
        return _gather_labelled(frames, blends, truth)

    if not runs and not truth and not (data / MANIFEST).is_file():
        raise DataError(
            f"{data}: no processed rows, and so no labels to compare the files by",
            "Add --truth FILE with the labels of the rows that they predict. Then no data folder "
            "is needed.",
        )

    processed = open_dataset(data)
    # A run that is named twice, perhaps by two different paths, counts once.
    opened = list({Run.open(path).path.resolve(): Run.open(path) for path in runs}.values())
    usable, unfinished, others = _sort_runs(opened, processed.digest("train"))
    if opened and not usable and not frames:
        # These raise the error that names the next command.
        for run in others:
            run.check_data(processed.digest("train"))
        opened[0].models()
    for run in usable:
        run.check_files(weights=False)

    test = _read_test_rows(processed, truth)
    part_ids = _read_part_ids(processed)
    sources = read_run_sources(usable)
    sources += read_file_sources(frames, part_ids, frozenset(test.ids.tolist()))
    _refuse_repeated_names([source.name for source in sources])

    train = read_truth(processed.folder / "train.parquet")
    parts = choose_parts([source.parts for source in sources if source.parts], processed.folds)
    rows, prior_labels = _read_valid_rows(train, part_ids, parts, processed.folds)
    main_rows = {"valid": rows, "test": test}

    # A run without these validation rows still has test rows to be compared on.
    main = [
        source
        for source in sources
        if source.covers(rows) or (source.test and (test.labels is not None or not source.run))
    ]
    models = _build_models(main, main_rows, processed, prior_labels)

    groups = []
    lacking = [source for source in sources if source.parts and not source.covers(rows)]
    rest = lacking
    while rest:
        parts = choose_parts([source.parts for source in rest], processed.folds)
        group_rows, prior = _read_valid_rows(train, part_ids, parts, processed.folds)
        sharing = [source for source in sources if source.covers(group_rows)]
        group_models = _build_models(sharing, {"valid": group_rows}, processed, prior)
        groups.append(ReportInputs(processed, {"valid": group_rows}, group_models))
        rest = [source for source in rest if source not in sharing]
    apart = [_describe_lacking(source, rows, groups, processed) for source in lacking]

    return _finish(
        ReportInputs(
            processed,
            main_rows,
            models,
            (*unfinished, *apart),
            tuple(describe_foreign(run) for run in others),
            tuple(groups),
        ),
        blends,
    )


def is_truth_for(
    truth: Path, runs: Sequence[str | Path], data: Path, frames: Sequence[tuple[str, Path]]
) -> bool:
    """Return whether a truth file has the labels that a report of these runs and files can use.

    Those are the labels of the processed test rows. Without a processed folder they are the labels
    of all rows that the files predict.

    Raises:
        DataError: the truth file or a prediction file cannot be read.
    """
    if (data / MANIFEST).is_file():
        return _is_truth_of(data, truth)
    known = set(read_truth(truth)[ID].tolist())
    return not runs and all(
        known.issuperset(read_predictions(file)[ID].tolist()) for _, file in frames
    )


def _is_truth_of(data: Path, truth: Path) -> bool:
    """Return whether there is a processed folder, and these are the labels of its test rows."""
    if not (data / MANIFEST).is_file():
        return False
    test_ids = open_dataset(data).test([ID])[ID].to_numpy()
    return set(read_truth(truth)[ID].tolist()) == set(test_ids.tolist())


def _gather_labelled(
    frames: Sequence[tuple[str, Path]], blends: Sequence[Path], truth: Path
) -> ReportInputs:
    """Compare prediction files on the rows of a truth file that they predict."""
    labels = read_truth(truth)
    ids_by_file = {file: frozenset(read_predictions(file)[ID].tolist()) for _, file in frames}
    for file, ids in ids_by_file.items():
        # This raises the error for ids that the truth lacks.
        known = labels[labels[ID].isin(ids)]
        row_positions(np.array(sorted(ids)), known[ID].to_numpy(), str(file), str(truth))

    # The rows of each file are a part of their own; the part of most files comes first.
    counts = Counter(ids_by_file.values())
    part_ids = {f"rows{number}": ids for number, (ids, _) in enumerate(counts.most_common())}
    sources = read_file_sources(frames, part_ids, frozenset())
    _refuse_repeated_names([source.name for source in sources])

    groups = []
    for part, ids in part_ids.items():
        table = restrict_truth(labels, pd.DataFrame({ID: list(ids)}))
        resampled: Resampled = "prompts"
        if GROUP not in table:
            # The truth does not tell which rows share a prompt.
            table = table.assign(**{GROUP: np.arange(len(table))})
            resampled = "rows"
        rows = replace(_report_rows(LABELLED, table, (part,)), resampled=resampled)
        sharing = [source for source in sources if source.covers(rows)]
        models = _build_models(sharing, {"valid": rows}, None, rows.known_labels)
        groups.append(ReportInputs(None, {"valid": rows}, models))

    main, *rest = groups
    left_out = [
        LeftOut(
            model.name,
            f"its rows are not the {len(main.rows['valid'].ids):,} of the first table",
            group.rows["valid"].title,
        )
        for group in rest
        for model in group.models_with("valid")
        if model.name not in {other.name for other in main.models}
    ]
    inputs = ReportInputs(None, main.rows, main.models, tuple(left_out), (), tuple(rest))
    return _finish(inputs, blends)


def _sort_runs(runs: Sequence[Run], digest: str) -> tuple[list[Run], list[LeftOut], list[Run]]:
    """Return the runs to compare, those without a finished part, and those of other data."""
    usable = []
    unfinished = []
    others = []
    for run in runs:
        # Ids alone would not show that a run was trained on other rows: they can be the same
        # numbers.
        if not run.finished():
            unfinished.append(LeftOut(run.name, "no part of it has finished training"))
        elif run.option("data", str) != digest:
            others.append(run)
        else:
            usable.append(run)
    return usable, unfinished, others


def _build_models(
    sources: Sequence[ModelSource],
    rows: Mapping[str, ReportRows],
    processed: Dataset | None,
    prior_labels: np.ndarray,
) -> tuple[ReportModel, ...]:
    """Return the references and the models of these rows."""
    models = [source.as_model(rows) for source in sources]
    references = reference_models(processed, prior_labels, rows)
    kept = [model for model in references if not has_baseline_run(model, models)]
    return (*kept, *models)


def _finish(inputs: ReportInputs, blends: Sequence[Path]) -> ReportInputs:
    """Add saved blends, each to every group that has its members, and check the result.

    Raises:
        DataError: see `gather_inputs`.
    """
    groups = list(inputs.groups)
    models = list(inputs.models)
    for path in blends:
        in_groups = [number for number, each in enumerate(groups) if has_members(path, each.models)]
        for number in in_groups:
            group = groups[number]
            blend = read_blend_model(path, group.models, group.rows["valid"])
            if blend.predictions:
                groups[number] = replace(group, models=(*group.models, blend))
        if has_members(path, models) or not in_groups:
            models.append(read_blend_model(path, models, inputs.rows["valid"]))

    _refuse_repeated_names([model.name for model in models])
    inputs = replace(inputs, models=tuple(models), groups=tuple(groups))
    if not inputs.models_with(inputs.main_split):
        raise DataError(
            "all predictions are of the test rows, whose labels are not known",
            "Name a file with the labels with --truth FILE.",
        )
    return inputs


def _refuse_repeated_names(names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"two models are called {repeated[0]!r}",
            "Give one of them another name with --frame NAME=FILE.",
        )


def _describe_lacking(
    source: ModelSource, rows: ReportRows, groups: Sequence[ReportInputs], processed: Dataset
) -> LeftOut:
    """Say which rows a model has in place of those that are compared, and how to add these."""
    folds = processed.folds
    names = [name_parts((part,), folds) for part in list_folds(folds) if part in source.parts]
    if len(names) == folds:
        names = ["all folds"]
    if HOLDOUT in source.parts:
        names.append("the holdout")
    reason = f"it has predicted {', '.join(names)} and not the {rows.name} rows"
    if source.run:
        fold = {OOF: "all"}.get(rows.name, rows.parts[0].removeprefix("fold"))
        reason += f"; {next_training(source.run, processed.folder, fold)}"
    group = next(group for group in groups if source.name in {model.name for model in group.models})
    return LeftOut(source.name, reason, group.rows["valid"].title)


def _read_part_ids(processed: Dataset) -> dict[str, frozenset[int]]:
    """Return the ids of the holdout's rows and of each fold's, by part."""
    ids = processed.train([ID])[ID].to_numpy()
    parts: list[str | int] = [HOLDOUT, *range(processed.folds)]
    names = (HOLDOUT, *list_folds(processed.folds))
    return {
        name: frozenset(ids[processed.fold_rows(part)[1]].tolist())
        for name, part in zip(names, parts, strict=True)
    }


def _read_valid_rows(
    train: pd.DataFrame, part_ids: Mapping[str, frozenset[int]], parts: Parts, folds: int
) -> tuple[ReportRows, np.ndarray]:
    """Return the rows of these parts, and the labels that their class prior is computed from."""
    chosen = train[ID].isin(frozenset().union(*(part_ids[part] for part in parts)))
    rows = _report_rows(name_parts(parts, folds), train[chosen], parts)
    # A prior that had seen the labels of the rows would be a better constant than it can be. With
    # several folds every row is trained on by all folds but one, whose priors hardly differ.
    prior_rows = train[~chosen] if len(parts) == 1 else train
    return rows, prior_rows[LABEL].to_numpy(np.int64)


def _read_test_rows(processed: Dataset, truth: Path | None) -> ReportRows:
    test = processed.test([ID, GROUP]).to_pandas()
    if truth:
        known = read_truth(truth)
        positions = row_positions(known[ID], test[ID], str(truth), "test.csv")
        test[LABEL] = known[LABEL].to_numpy()[positions]
    return _report_rows("test", test)


def _report_rows(name: str, table: pd.DataFrame, parts: Parts = ()) -> ReportRows:
    labels = table[LABEL].to_numpy(np.int64) if LABEL in table else None
    ids, groups = (table[column].to_numpy(np.int64) for column in (ID, GROUP))
    return ReportRows(name, ids, groups, labels, parts)
