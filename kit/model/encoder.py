"""Build and load encoders, decoders and their tokenizers. Use `load_encoder`, `load_tokenizer`.

What is loaded is complete and of the type that was asked for, or it is an error.
"""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from kit.data.frame import build_frame
from kit.data.tokenize import PairTokenizer
from kit.errors import BackboneError
from kit.model.backbones import FOLDER_HINT, WEIGHTS, ResolvedBackbone, hub_answers, missing_weights
from kit.model.checks import check_backbone_files, check_config, check_weights
from kit.model.device import base_dtype, choose_device
from kit.model.hub import skip_dead_hub
from kit.model.quantize import keep_packing, quantized_loading
from kit.recipe.spec import Quantize, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

# The hub limits requests by address, and Kaggle's sessions share addresses. It says when it will
# answer again, at most five minutes later.
_HUB_ATTEMPTS = 5
_HUB_PAUSE_S = 10.0
_HUB_LONGEST_PAUSE_S = 330.0


def build_encoder(
    config: dict[str, Any], fast_attention: bool = True, dtype: torch.dtype = torch.float32
) -> "PreTrainedModel":
    """Return the architecture of a configuration with random weights, without a pooler.

    Args:
        fast_attention: use kit's own attention and dropout where they are faster
            (`attention.patch`); names and weights are the same.
    """
    from transformers import AutoConfig, AutoModel

    values = dict(config)
    settings = AutoConfig.for_model(values.pop("model_type"), **values)
    settings.dtype = dtype
    encoder = AutoModel.from_config(settings, dtype=dtype)
    return _finish_encoder(encoder, fast_attention)


def _finish_encoder(encoder: "PreTrainedModel", fast_attention: bool) -> "PreTrainedModel":
    from kit.attention.patch import patch_encoder

    # kit pools by itself, and a layer without gradients would break distributed training. Some
    # families, such as LayoutLM, call their pooler without asking whether there is one.
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = nn.Identity()

    # A decoder would keep the keys and values of all its tokens, to write on.
    encoder.config.use_cache = False
    return patch_encoder(encoder) if fast_attention else encoder


def frozen_dtype(precision: str, config: dict[str, Any], fast_attention: bool) -> torch.dtype:
    """Return the type of an encoder's frozen weights: the one that it is computed in here.

    Args:
        precision: as the recipe has it, such as "auto".

    Raises:
        DeviceError: the precision cannot run here.
    """
    from kit.attention.patch import is_patched

    with torch.device("meta"):
        encoder = build_encoder(config, fast_attention)
    width = encoder.config.hidden_size if is_patched(encoder) else 0
    return base_dtype(choose_device(precision, width))


def count_parameters(config: dict[str, Any]) -> dict[str, int]:
    """Count parameters of an encoder: `backbone` (layers), `embedding` (all tables), `total`.

    The architecture is built on torch's meta device, so no weights are made.
    """
    with torch.device("meta"):
        encoder = build_encoder(config)
    total = sum(parameter.numel() for parameter in encoder.parameters())
    embedding = sum(
        parameter.numel()
        for name, parameter in encoder.named_parameters()
        if name.startswith(("embeddings.", "embed_tokens."))
    )
    return {"backbone": total - embedding, "embedding": embedding, "total": total}


def load_encoder(
    backbone: ResolvedBackbone,
    fast_attention: bool = True,
    dtype: torch.dtype = torch.float32,
    quantize: Quantize = "none",
) -> "PreTrainedModel":
    """Return the pretrained encoder without a pooler; otherwise as `build_encoder`.

    transformers 5 would keep a checkpoint's half precision, in which training goes to NaN or rounds
    its updates away, so the type is asked for and checked: weights that are trained are float32. A
    checkpoint that lacks encoder weights is an error, since transformers would go on with random
    layers in their place.

    Args:
        quantize: how the matrices of its layers are held. They are on the device then.

    Raises:
        RecipeError: they are to be quantised, and bitsandbytes is not installed.
        BackboneError: not found, not downloaded while offline, not loadable, or incomplete.
    """
    from transformers import AutoModel

    loading = quantized_loading(quantize, dtype)
    source = backbone.location
    if isinstance(source, Path) and not any((source / name).is_file() for name in WEIGHTS):
        raise missing_weights(source)
    if isinstance(source, Path):
        check_backbone_files(source)
    check_config(backbone.config, str(source))
    with (
        quiet_transformers(),
        skip_dead_hub(source),
        backbone.readable_location() as location,
    ):
        try:
            encoder, report = retry_busy_hub(
                lambda: AutoModel.from_pretrained(
                    location,
                    dtype=dtype,
                    trust_remote_code=False,
                    output_loading_info=True,
                    # Weights of another shape are reported below, by an error that names the
                    # weight.
                    ignore_mismatched_sizes=True,
                    **loading,
                )
            )
        # transformers, huggingface_hub and safetensors raise exceptions of many unrelated classes.
        except Exception as error:
            raise backbone.loading_error(error) from error

    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    mismatched = sorted(key[0] for key in report["mismatched_keys"] if "pooler" not in key[0])
    wrong = missing + mismatched
    if wrong:
        raise BackboneError(
            f"{source}: encoder weights are missing or have another shape: {len(wrong):,}, "
            f"the first is {wrong[0]}",
            "The folder's config.json and weights do not belong together; download it again.",
        )
    encoder = _finish_encoder(encoder, fast_attention)
    quantized = {torch.int8, torch.uint8} if loading else set()
    dtypes = {parameter.dtype for parameter in encoder.parameters()} - {dtype} - quantized
    if dtypes:
        raise BackboneError(
            f"{source}: weights were loaded as {dtypes}, not {dtype}",
            "This is a bug in kit; please report it.",
        )
    check_weights(encoder, str(source))
    if loading:
        keep_packing(encoder)
    else:
        _check_names(encoder, backbone)

    # A checkpoint cannot be written of weights that are views with strides of their own.
    for parameter in encoder.parameters():
        parameter.data = parameter.data.contiguous()
    return encoder


def _check_names(encoder: "PreTrainedModel", backbone: ResolvedBackbone) -> None:
    """Raise BackboneError if the weights are not those that the configuration describes.

    A run keeps the configuration, and could not be loaded again.
    """
    try:
        with torch.device("meta"):
            expected = {*build_encoder(backbone.config, fast_attention=False).state_dict()}
    # transformers raises exceptions of many unrelated classes.
    except Exception as error:
        raise backbone.loading_error(error) from error
    different = sorted(expected ^ {*encoder.state_dict()})
    if different:
        raise BackboneError(
            f"{backbone.source}: weights differ from what config.json describes: "
            f"{len(different):,}, the first is {different[0]}",
            FOLDER_HINT,
        )


def layer_index(name: str) -> int | None:
    """Return the number of the transformer layer that a parameter is in; None outside of them."""
    found = re.search(r"\.layers?\.(\d+)\.", name)
    return int(found[1]) if found else None


def load_tokenizer(
    backbone: ResolvedBackbone, frame: str | None = None, shape: Shape = "judge"
) -> PairTokenizer:
    """Return the tokenizer of a backbone, from its folder or from the hub.

    Args:
        frame: kind of frame around the rows of a decoder (see `data.frame`); None for an encoder,
            which frames them by its own tokens.
        shape: of the sequences that are framed.

    Raises:
        BackboneError: not found, not a fast tokenizer, or without the ids that frame a sequence.
    """
    from transformers import AutoTokenizer

    source = backbone.location
    with (
        quiet_transformers(),
        skip_dead_hub(source),
        backbone.readable_location() as location,
    ):
        try:
            tokenizer: Any = retry_busy_hub(
                lambda: AutoTokenizer.from_pretrained(location, trust_remote_code=False)
            )
        # As above; the tokenizers library adds exceptions of its own.
        except Exception as error:
            raise backbone.loading_error(error) from error
    is_fast = getattr(tokenizer, "is_fast", False)
    if frame and not is_fast:
        raise BackboneError(f"{source}: kit needs a fast tokenizer", FOLDER_HINT)
    if frame:
        # Padding is never read, so any token will do. Some decoders have none for it, or one
        # beyond their embeddings.
        return PairTokenizer(tokenizer, None, None, 0, build_frame(frame, tokenizer, shape))

    special = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    if not is_fast or None in special:
        raise BackboneError(
            f"{source}: kit needs a fast tokenizer with CLS, SEP and PAD tokens", FOLDER_HINT
        )
    return PairTokenizer(tokenizer, *special)


def retry_busy_hub(load: Callable[[], T]) -> T:
    """Return what `load` returns, trying again where the hub has too many requests or fails.

    huggingface_hub retries the download of a file, but not the look-up before it.
    """
    for attempt in range(_HUB_ATTEMPTS - 1):
        try:
            return load()
        # transformers wraps what the hub answered in exceptions of its own.
        except Exception as error:
            pause = _hub_pause(error, attempt)
            if pause is None:
                raise
            logging.getLogger(__name__).warning(
                "the Hugging Face hub is busy; trying again in %.0f s", pause
            )
            time.sleep(pause)
    return load()


def _hub_pause(error: BaseException, attempt: int) -> float | None:
    """Return the seconds to wait before the hub is asked again, None where that is pointless."""
    for answer in hub_answers(error):
        if answer.status_code == 429 or answer.status_code >= 500:
            requested = answer.headers.get("Retry-After", "")
            pause = float(requested) if requested.isdecimal() else _HUB_PAUSE_S * 2**attempt
            return pause if pause <= _HUB_LONGEST_PAUSE_S else None
    return None


@contextlib.contextmanager
def quiet_transformers() -> Generator[None]:
    """Keep transformers' progress bars and reports off the terminal; errors are still raised."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
