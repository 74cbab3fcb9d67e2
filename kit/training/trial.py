"""Try a recipe with one row before its run begins. Use `try_recipe`.

What would fail hours later or halfway through the first step, such as an encoder that cannot take
the longest row or whose weights cannot be saved, is one message here, and leaves no run behind.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional

from kit.data.dataset import Dataset
from kit.data.tokenize import PairTokenizer, TokenizedRows
from kit.errors import BackboneError, KitError
from kit.model.backbones import ResolvedBackbone
from kit.model.checks import check_spelling, unusable_encoder
from kit.model.device import choose_device, join_processes, out_of_memory
from kit.model.inference import make_collator
from kit.model.pair_model import PairModel
from kit.model.sharding import shard_base
from kit.recipe.spec import Recipe
from kit.task import TEXTS
from kit.training.setup import new_model

# Rows whose texts the tokenizer is tried on, spread over the file.
SPELLED_ROWS = 64
MAX_TEXT = 2000

# Share of unknown tokens that is worth a line; beyond 0.3 the tokenizer is refused.
NOTABLE_UNKNOWN = 0.05

_OTHER_FAMILY = "Choose a backbone of another family; `kit backbones` lists those that are known."


def try_recipe(
    recipe: Recipe, backbone: ResolvedBackbone, dataset: Dataset, log: Callable[[str], None]
) -> None:
    """Load the model, and run one row of the full length forward and backward.

    All processes of torchrun call this. Running out of memory is left to the training, which knows
    what to advise.

    Raises:
        BackboneError: the backbone cannot be loaded, spelled with, run, trained or saved.
        RecipeError: the recipe does not fit the encoder's layers.
        DeviceError: the device cannot run this.
    """
    compute = choose_device(recipe.train.precision)
    ranks = join_processes()
    transformers.set_seed(recipe.train.seed)
    with ranks.main_process_first():
        model, tokenizer = new_model(recipe, backbone, dataset)

    # Its own tokenizer is trained on these very rows.
    if backbone.source is not None:
        unknown = check_spelling(tokenizer, _sample_texts(dataset), backbone.name)
        if unknown > NOTABLE_UNKNOWN:
            log(f"{unknown:.0%} of the tokens of these rows are unknown to the tokenizer")
    check_savable(model, backbone.name)

    compute = choose_device(recipe.train.precision, model.bf16_width)
    if recipe.train.shard:
        shard_base(model, compute.device)
    try:
        model.to(compute.device)
        batch = _longest_row(model, tokenizer, recipe)
        batch = {name: _to_device(value, compute.device) for name, value in batch.items()}
        augment = recipe.train.swap_augmentation and not model.symmetric
        with compute.autocast():
            logits = model.train()(**batch, augment=augment).float().reshape(-1, 3)
        functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long)).backward()
    except KitError:
        raise
    # Each family has its own way to fail.
    except Exception as error:
        if out_of_memory(error):
            return
        name = type(model.encoder).__name__
        raise unusable_encoder(f"{backbone.name}: {name}", error) from error

    if not logits.isfinite().all():
        raise BackboneError(
            f"{backbone.name}: with {recipe.encode.max_tokens} tokens its output is not finite in "
            f"{compute.precision}",
            "Set train.precision=fp32, or choose another backbone.",
        )
    if not recipe.train.frozen:
        check_gradients(model, backbone.name, ranks.num_processes)


def check_savable(model: nn.Module, name: str) -> None:
    """Raise BackboneError if weights share their memory, which safetensors refuses to write."""
    owners: dict[tuple[torch.device, int], list[str]] = defaultdict(list)
    for key, tensor in model.state_dict().items():
        if tensor.numel():
            owners[tensor.device, tensor.untyped_storage().data_ptr()].append(key)
    shared = next((keys for keys in owners.values() if len(keys) > 1), None)
    if shared:
        raise BackboneError(
            f"{name}: {shared[0]} and {shared[1]} are one weight, which a checkpoint cannot hold",
            _OTHER_FAMILY,
        )


def check_gradients(model: PairModel, name: str, processes: int) -> None:
    """Refuse an encoder that would not learn; call this after a backward pass.

    Raises:
        BackboneError: no weight of the encoder gets a gradient; or some do not, and several
            processes would wait for them.
    """
    trained = [(key, p) for key, p in model.encoder.named_parameters() if p.requires_grad]
    if not any(p.grad is not None and p.grad.any() for _, p in trained):
        raise BackboneError(f"{name}: no weight of the encoder gets a gradient", _OTHER_FAMILY)
    without = [key for key, p in trained if p.grad is None]
    if without and processes > 1:
        raise BackboneError(
            f"{name}: weights get no gradient: {len(without):,}, the first is {without[0]}, and "
            f"{processes} processes cannot train that",
            "Train it in one process.",
        )


def _sample_texts(dataset: Dataset) -> list[str]:
    """Return texts of rows that are spread over the training rows."""
    table = dataset.train().select(TEXTS)
    rows = np.unique(np.linspace(0, table.num_rows - 1, SPELLED_ROWS).astype(np.int64))
    turns = [turn for row in table.take(rows).to_pylist() for cell in row.values() for turn in cell]
    return [turn[:MAX_TEXT] for turn in turns]


def _longest_row(model: PairModel, tokenizer: PairTokenizer, recipe: Recipe) -> dict[str, Any]:
    """Return a batch of one row with sequences of the full length, the highest token id in them."""
    length = recipe.encode.max_tokens
    vocabulary = tokenizer.pretrained.get_vocab().values()
    known = {token for token in vocabulary if token < model.encoder_config["vocab_size"]}
    ids = np.array(sorted(known - {tokenizer.pad}), np.int32)
    side = ids[np.linspace(0, len(ids) - 1, length).astype(np.int64)]
    encoded = TokenizedRows(
        tokens=np.concatenate([side, side]),
        starts=np.array([0, length, 2 * length]),
        first_lengths=np.full(2, length // 2, np.int32),
        whole_lengths=np.full(2, length, np.int32),
        sides=2,
        cut=0,
    )
    first_only = model.reads_first_only and not recipe.train.swap_augmentation
    collator = make_collator(model, encoded, tokenizer, first_only=first_only)
    batch = collator(np.zeros(1, np.int64))
    if model.feature_names:
        sides, pair = model.feature_names
        features = {"sides": torch.zeros(1, 2, len(sides)), "pair": torch.zeros(1, len(pair))}
        batch["features"] = features
    return batch


def _to_device(value: Any, device: torch.device) -> Any:
    """Move a batch, or a part of it, to the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _to_device(part, device) for name, part in value.items()}
    return [_to_device(part, device) for part in value]
