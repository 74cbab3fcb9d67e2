"""Count the tokens of real rows, before anything is trained. Use `count_lengths`."""

import tempfile
from pathlib import Path

import numpy as np

from kit.costs.lengths import RowLengths, sequence_lengths
from kit.data.dataset import Dataset, SampledDataset, sample_dataset
from kit.data.tokenize import TokenizedRows, tokenize_rows
from kit.errors import BackboneError
from kit.model.backbones import ResolvedBackbone, local_backbone
from kit.model.encoder import load_tokenizer
from kit.recipe.spec import Recipe
from kit.task import PROMPT, RESPONSES, TEXTS
from kit.training.setup import tiny_folder

# Rows that are tokenised, spread over all: their mean length is within about one per cent.
SAMPLED_ROWS = 4096


def count_lengths(
    recipe: Recipe, backbone: ResolvedBackbone, dataset: Dataset, fold: int | str
) -> RowLengths:
    """Return the lengths of a fold's training rows after truncation, by the recipe's tokenizer.

    Where the tokenizer cannot be loaded, they are estimated from the rows' characters.

    Raises:
        DataError: there is no such fold.
    """
    train, valid = dataset.fold_rows(fold)
    chosen = train
    if len(train) > SAMPLED_ROWS:
        chosen = train[np.linspace(0, len(train) - 1, SAMPLED_ROWS).astype(np.int64)]

    counted = "all" if len(chosen) == len(train) else f"{len(chosen):,}"
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        sample = sample_dataset(dataset, chosen, Path(scratch))
        try:
            tokens = _tokenize(recipe, backbone, sample)
            source = f"counted on {counted} rows"
        except BackboneError:
            table = sample.train(list(TEXTS))
            characters = [
                np.array([sum(map(len, turns)) for turns in table[name].to_pylist()])
                for name in (PROMPT, *RESPONSES)
            ]
            tokens = sequence_lengths(characters[0], characters[1:], recipe)
            source = "from characters"
    return RowLengths(tokens, len(train), len(valid), source)


def _tokenize(recipe: Recipe, backbone: ResolvedBackbone, sample: SampledDataset) -> np.ndarray:
    """Return the lengths of the rows' sequences (N, S).

    Raises:
        BackboneError: the tokenizer cannot be loaded.
    """
    if backbone.source is None:
        assert backbone.record is not None, "only the registry's backbones have no files"
        backbone = local_backbone(tiny_folder(backbone.record, sample))
    folder = sample.scratch / "tokens"
    frame = recipe.encode.frame if backbone.is_decoder else None
    tokenizer = load_tokenizer(backbone, frame, recipe.model.shape)
    tokenize_rows(sample.train(), tokenizer, recipe.encode, folder, recipe.model.shape)

    # The files are mapped, and gone when the folder is.
    return TokenizedRows.open(folder).lengths.copy()
