"""Check that a backbone is what it seems: its files, weights, tokenizer, and use of the mask.

Use `check_backbone_files` before it is loaded, `check_weights` and `check_vocabulary` after, and
`reads_padding` for a family that kit does not know. What transformers loads without an error may
still be weights without their scales, a tokenizer without its vocabulary, or an encoder that mixes
padding into its answers.
"""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit.attention.families import find_family
from kit.data.tokenize import PairTokenizer
from kit.errors import BackboneError
from kit.model.backbones import WEIGHTS
from kit.storage.atomic import read_text_file
from kit.storage.contents import describe_impostor, read_tensor_table
from kit.wording import first_line

if TYPE_CHECKING:
    from kit.model.pair_model import PairModel

_TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

# Types of safetensors in which a weight is a number times a scale that is kept elsewhere.
_SCALED_TYPES = ("I8", "U8", "I16", "U16", "I32", "U32", "F8_E4M3", "F8_E5M2", "F4", "BOOL")
_FLOAT_HINT = "Use the float weights that these were made from."
_DAMAGED_HINT = (
    "Download or copy the weights again; a training that diverged leaves such ones, too."
)

# Pretrained matrices have standard deviations of 0.02 to 1; int8 without its scales has about 40.
_MAX_SPREAD = 5.0
_MATRIX = 16

_PANGRAM = "The quick brown fox jumps over the lazy dog, 0123456789 times (or more)!"
_MAX_UNKNOWN = 0.3

# Embeddings may be padded to a round number, and toy tokenizers are trained on few rows.
_SPARE_EMBEDDINGS = 2000
_SPARE_SHARE = 0.15
_MAX_TOKENS_PER_LETTER = 0.7
_HINT_TOKENIZER = (
    "Its vocabulary file is missing, misnamed or of another model; download the folder again."
)

# Lengths of the sequences of the probe: short to be cheap, odd to meet strides and windows.
_SHORT = 23
_LONG = 64

# Rounding differs by about 1e-6; FNet's padding moves its states by more than their spread.
_TOLERANCE = 1e-4


def check_backbone_files(folder: Path) -> None:
    """Refuse a backbone folder with files that are not what their names say.

    Raises:
        BackboneError: a Git LFS pointer, a web page, an empty or an incomplete file, quantised
            weights, or adapters next to weights.
    """
    weights = _weight_files(folder)
    tokenizer = [path for pattern in _TOKENIZER_FILES for path in sorted(folder.glob(pattern))]
    for path in [*weights, *tokenizer]:
        impostor = describe_impostor(path) if path.is_file() else ""
        if impostor:
            problem, _, hint = impostor.partition(": ")
            raise BackboneError(f"{path} {problem}", f"{hint[:1].upper()}{hint[1:]}.")

    # transformers would load such adapters on top and freeze all weights, whether they were merged
    # into them or not.
    adapters = [name for name in _ADAPTERS if (folder / name).is_file()]
    if adapters:
        raise BackboneError(
            f"{folder}: {adapters[0]} of an earlier training is next to the weights",
            "If the adapters were merged into the weights, move the adapter files away; otherwise "
            "merge them first (peft: merge_and_unload, then save_pretrained).",
        )
    for path in weights:
        if path.suffix == ".safetensors" and path.is_file():
            _check_types(path)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers will read the weights from; there may be others."""
    names = [name for name in WEIGHTS if (folder / name).is_file()]
    files = [folder / name for name in names[:1]]
    if files and files[0].suffix == ".json":
        # An index that cannot be read is one of the files that are looked at next.
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            index = json.loads(read_text_file(files[0]))
            files += [folder / str(shard) for shard in sorted({*index["weight_map"].values()})]
    return files


def _check_types(path: Path) -> None:
    """Raise BackboneError if weights of a safetensors file are numbers without their scales."""
    for name, entry in read_tensor_table(path).items():
        # Buffers such as position_ids are whole numbers rightly.
        if entry["dtype"] in _SCALED_TYPES and name.endswith(("weight", "bias")):
            raise BackboneError(
                f"{path}: {name} is {entry['dtype']}: these weights are quantised, and kit trains "
                "floats",
                _FLOAT_HINT,
            )


def check_config(config: dict[str, Any], name: str) -> None:
    """Raise BackboneError if a configuration says that its weights are quantised."""
    settings = config.get("quantization_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise BackboneError(
            f"{name}: its config.json says that the weights are quantised ({method})", _FLOAT_HINT
        )


@torch.no_grad()
def check_weights(module: nn.Module, name: str) -> None:
    """Refuse weights that no pretraining leaves.

    Raises:
        BackboneError: weights that are not finite, matrices of zeros, quantised values without
            their scales, or weights of which most are frozen.
    """
    # Those that kit has quantised itself are whole numbers.
    weights = {key: w for key, w in module.named_parameters() if w.is_floating_point()}
    wrong = [key for key, weight in weights.items() if not torch.isfinite(weight).all()]
    if wrong:
        raise BackboneError(
            f"{name}: weights have values that are not finite (NaN or infinite): {len(wrong):,} "
            f"of {len(weights):,}, the first is {wrong[0]}",
            _DAMAGED_HINT,
        )

    matrices = {key: w for key, w in weights.items() if w.ndim > 1 and min(w.shape) >= _MATRIX}
    zeros = [key for key, weight in matrices.items() if not weight.any()]
    if zeros:
        raise BackboneError(
            f"{name}: matrices are all zeros: {len(zeros):,} of {len(matrices):,}, the first is "
            f"{zeros[0]}",
            _DAMAGED_HINT,
        )
    # A few rows of each are enough to tell.
    rows = {key: weight[:: max(1, len(weight) // 8)] for key, weight in matrices.items()}
    whole = [key for key, row in rows.items() if row.any() and torch.equal(row, row.round())]
    spreads = torch.tensor([float(weight.std()) for weight in matrices.values()])
    if whole or (len(spreads) and spreads.median() > _MAX_SPREAD):
        raise BackboneError(
            f"{name}: {(whole or list(matrices))[0]} holds quantised values without their scales",
            _FLOAT_HINT,
        )

    frozen = sum(weight.numel() for weight in weights.values() if not weight.requires_grad)
    total = sum(weight.numel() for weight in weights.values())
    if 2 * frozen > total:
        raise BackboneError(
            f"{name}: {frozen:,} of {total:,} parameters are frozen: the training would not change "
            "them",
            "The folder may hold adapters or quantised weights; use the weights alone.",
        )


def check_vocabulary(tokenizer: PairTokenizer, vocab_size: int, name: str) -> None:
    """Refuse a tokenizer that is not its encoder's.

    Raises:
        BackboneError: it has more tokens than the encoder has embeddings, or far fewer, or it
            cannot spell plain English.
    """
    # Tokens of decoders for images, tools or the end of a message may have no embeddings, and occur
    # in no row; those of the frame do.
    vocabulary = tokenizer.pretrained.get_vocab()
    if tokenizer.frame:
        vocabulary = tokenizer.backend.get_vocab(with_added_tokens=False)
    tokens = 1 + max([*vocabulary.values(), *tokenizer.frame_tokens], default=-1)
    if tokens > vocab_size:
        raise BackboneError(
            f"{name}: its tokenizer has {tokens:,} tokens, its encoder embeddings for "
            f"{vocab_size:,}",
            "Tokenizer and weights do not belong together; download the folder again.",
        )
    if vocab_size - tokens > max(_SPARE_EMBEDDINGS, _SPARE_SHARE * vocab_size):
        raise BackboneError(
            f"{name}: its tokenizer has only {tokens:,} tokens, its encoder embeddings for "
            f"{vocab_size:,}",
            _HINT_TOKENIZER,
        )
    unknown = unknown_share(tokenizer, [_PANGRAM])
    if unknown > _MAX_UNKNOWN:
        raise BackboneError(
            f"{name}: its tokenizer cannot spell: {unknown:.0%} of a plain English sentence is "
            "unknown to it",
            _HINT_TOKENIZER,
        )


def check_spelling(tokenizer: PairTokenizer, texts: Sequence[str], name: str) -> float:
    """Refuse a tokenizer that cannot spell these texts; return the share of unknown tokens.

    Raises:
        BackboneError: many tokens are unknown, or words fall into single letters although the
            vocabulary has longer pieces.
    """
    unknown = unknown_share(tokenizer, texts)
    if unknown > _MAX_UNKNOWN:
        raise BackboneError(
            f"{name}: its tokenizer cannot spell these rows: {unknown:.0%} of the tokens are "
            "unknown to it",
            _HINT_TOKENIZER,
        )

    # A byte-level tokenizer without its merges knows every letter and no word.
    words = [word for text in texts for word in re.findall(r"[A-Za-z]{4,}", text)]
    pieces = [piece for piece in tokenizer.pretrained.get_vocab() if len(piece) > 3]
    encoded = tokenizer.backend.encode_batch_fast(words, add_special_tokens=False)
    tokens = sum(len(encoding.ids) for encoding in encoded)
    if len(pieces) > 1000 and tokens > _MAX_TOKENS_PER_LETTER * sum(map(len, words)):
        raise BackboneError(
            f"{name}: its tokenizer splits words into single letters: {tokens:,} tokens for "
            f"{len(words):,} words",
            _HINT_TOKENIZER,
        )
    return unknown


def unknown_share(tokenizer: PairTokenizer, texts: Sequence[str]) -> float:
    """Return the share of unknown tokens; a word that no token stands for counts as one."""
    words = [word for text in texts for word in text.split()]
    encoded = tokenizer.backend.encode_batch_fast(words, add_special_tokens=False)
    unknown = tokenizer.pretrained.unk_token_id
    lost = sum(encoding.ids.count(unknown) or not encoding.ids for encoding in encoded)
    return lost / max(1, sum(max(1, len(encoding.ids)) for encoding in encoded))


def find_padding_reader(model: "PairModel", tokenizer: PairTokenizer) -> None:
    """Set the model's `reads_padding`, unless an earlier trial has.

    Families that are known to keep to the mask are not tried.

    Raises:
        BackboneError: see `reads_padding`.
    """
    family = find_family(model.encoder_config["model_type"])
    if family.masks_padding:
        model.reads_padding = False
    elif model.reads_padding is None:
        model.reads_padding = reads_padding(model, tokenizer)


def reads_padding(model: "PairModel", tokenizer: PairTokenizer) -> bool:
    """Tell whether the padding next to a sequence changes its vector, though it is masked.

    Convolutions and Fourier transforms do not see the mask: FNet, ConvBERT, YOSO, CANINE. Such an
    encoder is run one length at a time.

    Raises:
        BackboneError: the vector depends on chance, or on the other sequences of a batch, which no
            order of the work can mend; or the encoder does not run.
    """
    ids = _probe_tokens(tokenizer, 3 * _LONG)
    short = ids[None, :_SHORT]
    pair = torch.stack([ids[:_SHORT], ids[_SHORT : 2 * _SHORT]])
    padded = torch.stack([ids[:_LONG], ids[_LONG : 2 * _LONG]])
    padded[0, _SHORT:] = tokenizer.pad
    mask = torch.ones_like(padded)
    mask[0, _SHORT:] = 0

    name = type(model.encoder).__name__
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = _vector(model, short, torch.ones_like(short))
            again = _vector(model, short, torch.ones_like(short))
            in_batch = _vector(model, pair, torch.ones_like(pair))
            with_padding = _vector(model, padded, mask)
    # Each family has its own way to fail.
    except Exception as error:
        raise unusable_encoder(name, error) from error
    finally:
        model.train(training)

    for other, reason in ((again, "chance"), (in_batch, "the other sequences of a batch")):
        if _differs(alone, other):
            raise BackboneError(
                f"{name}: its answer to a sequence depends on {reason}",
                "Choose a backbone of another family; `kit backbones` lists those that are known.",
            )
    return _differs(alone, with_padding)


def unusable_encoder(name: str, error: Exception) -> BackboneError:
    """Return the error to raise for an encoder that loads but does not run."""
    return BackboneError(
        f"{name} cannot be used as an encoder: {type(error).__name__}: {first_line(error)}",
        "Choose a backbone of another family; `kit backbones` lists those that are known.",
    )


def _probe_tokens(tokenizer: PairTokenizer, count: int) -> Tensor:
    """Return ordinary token ids, spread over the vocabulary."""
    special = {*tokenizer.pretrained.all_special_ids}
    usable = sorted({*tokenizer.pretrained.get_vocab().values()} - special) or [tokenizer.cls]
    step = max(1, len(usable) // count)
    return torch.tensor([usable[number * step % len(usable)] for number in range(count)])


def _vector(model: "PairModel", ids: Tensor, mask: Tensor) -> Tensor:
    """Return the pooled vector of the first sequence."""
    pack = {"input_ids": ids, "attention_mask": mask}
    if (model.encoder_config.get("type_vocab_size") or 0) > 1:
        pack["token_type_ids"] = torch.zeros_like(ids)
    device = next(model.parameters()).device
    return model.pool({name: value.to(device) for name, value in pack.items()})[0]


def _differs(one: Tensor, other: Tensor) -> bool:
    """Tell whether two vectors differ by more than rounding."""
    return not bool((one - other).abs().max() <= _TOLERANCE * one.abs().max())
