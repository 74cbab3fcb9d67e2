"""Hold a frozen base in 8 or 4 bits a weight, by bitsandbytes. Use `quantized_loading`.

The matrices of the layers are quantised while they are loaded, so that the whole base is never in
memory: in 8 bits with a scale for each row (Dettmers et al. 2022, LLM.int8()), in 4 bits as normal
floats with a scale for each 64 weights (Dettmers et al. 2023, QLoRA). Embeddings and norms stay as
they are. Adapters beside them are float32, and everything else of the model is untouched: no weight
is cast, and gradients reach the adapters through the frozen layers anyway.
"""

from typing import Any

import torch
from torch import nn

from kit.errors import RecipeError
from kit.model.device import choose_device
from kit.recipe.spec import Quantize

# Bytes of a quantised weight: in 4 bits half of one, a scale of one byte for 64 weights, and a
# scale of four for 256 of these.
WEIGHT_BYTES: dict[str, float] = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}


def require_bitsandbytes(quantize: Quantize) -> None:
    """Raise RecipeError if there are quantised weights, and bitsandbytes is not installed."""
    if quantize == "none":
        return
    try:
        import bitsandbytes  # noqa: F401
    # A build for another CUDA raises RuntimeError.
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f'model.quantize = "{quantize}" needs bitsandbytes, which cannot be imported: {reason}',
            "Run `pip install 'bitsandbytes>=0.46.1'`, or train with model.quantize=none.",
        ) from error


def quantized_loading(quantize: Quantize, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of transformers' `from_pretrained` that quantise; none for "none".

    Args:
        dtype: that the base is computed in. On a T4 that has to be said: it emulates bf16.

    Raises:
        RecipeError: bitsandbytes is not installed.
    """
    if quantize == "none":
        return {}
    require_bitsandbytes(quantize)
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_8bit=True)
    if quantize == "4bit":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )

    # Where it will run, since a GPU packs the weights in another way. Each process has its own.
    device = choose_device("fp32").device
    return {"quantization_config": settings, "device_map": {"": device}}


def keep_packing(encoder: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for a CPU in the first evaluation.

    What it packs has no gradient in the training that goes on, and its packing fails for layers
    whose width is no multiple of 64.
    """
    for module in encoder.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # torch's stubs want a tensor or a module here.
            module.support_avx512bf16_for_cpu = False  # ty: ignore[invalid-assignment]
