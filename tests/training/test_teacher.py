"""Check that a student learns from its teachers' probabilities, and from no others."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from quick_recipe import QUICK

from kit.data.dataset import Dataset
from kit.errors import DataError, RecipeError
from kit.predictions import make_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.task import CLASSES, ID, LABEL
from kit.training.loss import summed_cross_entropy
from kit.training.teacher import distillation_loss, read_teachers, teacher_targets, with_teacher
from kit.training.train import train_recipe

CROSS_ENTROPY = partial(summed_cross_entropy, smoothing=0.0)
OVERRIDES = (*QUICK, "train.max_steps=4")


@pytest.fixture
def frame(processed: Dataset) -> pd.DataFrame:
    """Return predictions of all training rows that are nearly their labels."""
    rows = processed.train([ID, LABEL]).to_pandas()
    return make_predictions(rows[ID].to_numpy(), 0.7 * np.eye(3)[rows[LABEL]] + 0.1)


def test_the_loss_is_cross_entropy_and_divergence_by_weight():
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.2, 0.1]])
    targets = np.array([0, 2])
    teacher = make_predictions(np.arange(2), np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]))
    labels = torch.from_numpy(teacher_targets(targets, np.arange(2), teacher))
    own = CROSS_ENTROPY(logits, torch.from_numpy(targets), num_items_in_batch=2)

    probabilities = torch.from_numpy(teacher[list(CLASSES)].to_numpy()).float()
    for temperature in (1.0, 4.0):
        soft = (probabilities.log() / temperature).softmax(1)
        student = (logits / temperature).log_softmax(1)
        divergence = (soft * (soft.log() - student)).sum(1).mean()
        expected = 0.4 * own + 0.6 * temperature**2 * divergence
        loss = distillation_loss(CROSS_ENTROPY, 0.6, temperature)
        assert loss(logits, labels, 2) == pytest.approx(float(expected), rel=1e-5)

        # Both orders of the answers count half each.
        both = torch.stack([logits, logits], 1)
        assert loss(both, labels, 2) == pytest.approx(float(expected), rel=1e-5)


def test_a_student_repeats_its_teachers_and_is_a_run_of_its_own(
    data: Path, frame: pd.DataFrame, tmp_path: Path
):
    teacher = tmp_path / "teacher.csv"
    write_predictions(frame, teacher)
    recipe = load_recipe("tiny-electra", OVERRIDES)
    student = Run(Path(train_recipe(recipe, data, tmp_path, teachers=[teacher])["run"]))
    assert student.name != recipe.run_name
    assert len(student.recipe.train.teacher) == 8
    pd.testing.assert_frame_equal(student.teacher, frame, rtol=0, atol=1e-9)

    # The run goes on without the file, and its recipe does not begin another one without it.
    teacher.unlink()
    train_recipe(student.recipe, data, tmp_path, resume=True)
    with pytest.raises(RecipeError, match="learns from a teacher"):
        train_recipe(student.recipe, data, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_teachers_are_averaged_and_must_have_every_row(
    processed: Dataset, frame: pd.DataFrame, tmp_path: Path
):
    flat = make_predictions(frame[ID].to_numpy(), np.full((len(frame), 3), 1 / 3))
    files = []
    for name, one in (("sharp", frame), ("flat", flat), ("short", frame.iloc[1:])):
        files.append(tmp_path / f"{name}.csv")
        write_predictions(one, files[-1])
    mean = read_teachers(files[:2], processed)[list(CLASSES)].to_numpy()
    np.testing.assert_allclose(mean, (frame[list(CLASSES)] + 1 / 3) / 2, atol=1e-6)
    with pytest.raises(DataError, match="no prediction of 1 training row,"):
        read_teachers(files[2:], processed)


def test_another_teacher_than_the_recipes_is_refused(frame: pd.DataFrame):
    recipe = with_teacher(load_recipe("tiny-electra"), frame)
    other = frame.assign(**{CLASSES[0]: frame[CLASSES[1]], CLASSES[1]: frame[CLASSES[0]]})
    with pytest.raises(RecipeError, match="but --teacher has the predictions"):
        with_teacher(recipe, other)
    assert with_teacher(recipe, frame) == recipe
    assert dataclasses.replace(recipe.train, teacher="") == load_recipe("tiny-electra").train
