"""What a part is trained from: the model on its device, rows to learn from and to be judged by, batches of both."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import transformers
from accelerate import PartialState

from kit.data.dataset import Dataset
from kit.data.feature_cache import features_cached
from kit.data.tokenize import PairTokenizer, tokenize_cached
from kit.model.collator import PAD_MULTIPLE, Collator
from kit.model.device import Compute, choose_device, prepare_device
from kit.model.inference import make_collator
from kit.model.pair_model import PairModel
from kit.recipe.spec import Recipe
from kit.task import ID, LABEL
from kit.training.start import new_model


@dataclass(frozen=True)
class FoldSetup:
    """Everything of a part but the training.

    Attributes:
        lessons: batches to learn from, with soft labels and weights where there are some.
        questions: batches to be judged by, with the labels.
        train_rows, valid_rows: numbers of the rows to learn from (T,) and to be judged by (V,).
        ids, labels: of all rows, int64 (N,).
        targets: what each row teaches, (N,) or (N, 3).
        cut: the share of sequences that did not fit.
    """

    model: PairModel
    vocabulary: PairTokenizer
    compute: Compute
    lessons: Collator
    questions: Collator
    train_rows: np.ndarray
    valid_rows: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    cut: float


def prepare_fold(
    recipe: Recipe, data: Dataset, fold: int | str, say: Callable[[str], None]
) -> FoldSetup:
    """The material of one part; random weights follow the recipe's seed. Under torchrun every process calls this.

    Raises:
        RecipeError, BackboneError: as `start.new_model`.
        DeviceError: the device cannot run this.
    """
    train, compute = (
        recipe.train,
        choose_device(recipe.train.precision),
    )  # refuses a device before a model is fetched for it
    ranks = PartialState(cpu=compute.device.type == "cpu")
    transformers.set_seed(train.seed)
    with ranks.main_process_first():  # the others find its downloads and caches
        model, vocabulary = new_model(recipe, data)
        compute = choose_device(train.precision, model.bf16_width)
        say(compute.reason)
        rows, content = data.train(), data.digest("train")
        encoded = tokenize_cached(
            rows, content, vocabulary, recipe.encode, data.cache, recipe.model.shape
        )
        tabular = (
            features_cached(rows, content, encoded, data.cache) if recipe.model.features else None
        )
    cut = encoded.cut / (len(encoded) * encoded.sides)
    say(
        f"{len(encoded):,} rows encoded; {cut:.0%} of sequences cut to {recipe.encode.max_tokens} tokens"
    )
    train_rows, valid_rows = data.fold_rows(fold)
    rows = data.train([ID, LABEL])
    labels, targets = rows[LABEL].to_numpy(), data.targets()
    if tabular is not None:
        model.fit_features(tabular, train_rows)
    prepare_device(compute)
    model.to(compute.device)  # before the collators look where it is
    multiple = PAD_MULTIPLE if train.compile else 1
    one = model.reads_first_only and not train.swap_augmentation
    how = {"max_tokens": train.micro_tokens, "pad_multiple": multiple, "first_only": one}
    lessons = make_collator(model, encoded, vocabulary, targets, tabular, **how)
    questions = make_collator(
        model, encoded, vocabulary, labels, tabular=tabular, pad_multiple=multiple
    )
    if train.compile:
        model.encoder.compile(dynamic=True)
    return FoldSetup(
        model=model,
        vocabulary=vocabulary,
        compute=compute,
        lessons=lessons,
        questions=questions,
        train_rows=train_rows,
        valid_rows=valid_rows,
        ids=rows[ID].to_numpy(),
        labels=labels,
        targets=targets,
        cut=cut,
    )
