"""Size forward passes by the memory there is, on every device, to train and to predict.

Use `training_tokens` and `prediction_tokens`; `free_after_pass` and `free_after_failure` give back
what a pass, or one that did not fit, has left behind.

What a pass needs is estimated from the encoder's sizes. The constants were fitted to the tensors
that autograd keeps for BERT, ELECTRA, RoBERTa and DeBERTa in float32 and bf16
(tests/model/test_memory.py counts them again).
"""

import gc
import os

import torch
from transformers import PreTrainedModel

from kit.attention.deberta import key_mask_encoder
from kit.attention.families import find_family
from kit.model.device import Compute
from kit.recipe.spec import TrainSpec
from kit.storage.memory import (
    peak_memory,
    read_memory,
    resident_memory,
    return_freed_memory,
)

# Padded tokens of a prediction's pass, by device: more would not be faster.
BATCH_TOKENS = {"cuda": 65536, "cpu": 4096, "mps": 16384}

# The most that a training's activations may take on a CPU, where larger passes are not faster.
# Training of a small encoder then stays under 4 GB in all.
CPU_ACTIVATIONS = 5 << 28

# Beyond so many bytes of a process on a CPU, what passes have freed is given back after each batch.
# The C library would keep it for the next ones, whose tensors have other sizes.
CPU_RESIDENT = 3 << 30

# Bytes of a trained weight's gradient and of AdamW's two moments, all float32.
TRAINED_BYTES = 12

# What stays free on a GPU, for NCCL's buffers and for memory in pieces too small to be used.
GPU_RESERVE = 300 << 20
GPU_SHARE = 0.9

# Bytes of a number that a layer keeps. In half precision norms and residual states stay float32.
_WIDTH = {"fp32": 4.0, "bf16": 2.6, "fp16": 2.6}


def token_bytes(
    encoder: PreTrainedModel,
    compute: Compute,
    length: int,
    *,
    training: bool,
    checkpointing: bool = False,
) -> float:
    """Estimate the bytes that a pass takes for each of its tokens, beyond weights and gradients.

    Args:
        length: tokens of a sequence, on which the size of its attention's scores depends.
        training: whether activations are kept for the backward pass, of all layers or, with
            `checkpointing`, of one at a time.
    """
    config = encoder.config
    hidden = config.hidden_size
    layers = getattr(config, "num_hidden_layers", 12)
    heads = getattr(config, "num_attention_heads", 12)
    inner = getattr(config, "intermediate_size", 4 * hidden)
    is_deberta = key_mask_encoder(encoder) is not None

    # A gated feed-forward layer, as ModernBERT's and decoders', makes twice the numbers.
    is_gated = config.model_type == "modernbert" or find_family(config.model_type).causal
    gates = 2 if is_gated else 1
    numbers = (11 if is_deberta else 10) * hidden + 2 * gates * inner
    layer = _WIDTH[compute.precision] * numbers

    # Fused kernels on a GPU keep no scores, but DeBERTa's take its position bias.
    if compute.device.type != "cuda" or is_deberta:
        layer += (4 if compute.precision == "fp32" else 2) * heads * length
    if not training:
        return layer
    kept = 4.0 * hidden if checkpointing else layer
    return kept * layers + layer


def training_tokens(
    encoder: PreTrainedModel, spec: TrainSpec, compute: Compute, rows: int, sides: int, length: int
) -> int:
    """Return the most tokens that a training's pass may have, 0 where `rows` rows fit anyway.

    The optimizer step is the same with any number. Call it when the model is on its device, and
    before its first step.

    Args:
        rows: of a pass.
        sides: sequences of a row.
        length: tokens of the longest sequence.
    """
    budget = _training_budget(encoder, compute)
    row_tokens = sides * length
    if budget is None:
        return spec.micro_tokens
    each = token_bytes(
        encoder, compute, length, training=True, checkpointing=spec.gradient_checkpointing
    )
    if spec.r_drop:
        # Both passes of a batch are kept until their backward pass.
        each *= 2
    tokens = max(row_tokens, int(budget / each))
    if tokens >= rows * row_tokens:
        return spec.micro_tokens
    return min(tokens, spec.micro_tokens or tokens)


def prediction_tokens(encoder: PreTrainedModel, compute: Compute, length: int) -> int:
    """Return the padded tokens of a prediction's pass: what is fastest, or fewer where they fit."""
    fastest = BATCH_TOKENS[compute.device.type]
    free = free_memory(compute.device)
    if free is None:
        return fastest
    share = GPU_SHARE if compute.device.type == "cuda" else 0.5
    each = token_bytes(encoder, compute, length, training=False)
    return max(length, min(fastest, int(share * free / each)))


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may still take on a device, None where it is unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    free = read_memory().free
    return None if free is None else free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def taken_memory(device: torch.device) -> int:
    """Return the most bytes that this process has taken: on its GPU, or else of main memory."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory()


def free_after_pass(device: torch.device) -> None:
    """Give back what the passes of a batch have freed, where a process on a CPU has grown large."""
    if device.type == "cpu" and resident_memory() > CPU_RESIDENT:
        return_freed_memory()


def free_after_failure() -> None:
    """Free what a failed pass, or a model that is no longer used, has left behind.

    Call it after the exception's handler: within it the traceback still holds the pass's tensors,
    and there is nothing to free. Trainer keeps model and optimizer in a reference cycle.
    """
    gc.collect()
    torch.cuda.empty_cache()


def _training_budget(encoder: PreTrainedModel, compute: Compute) -> float | None:
    """Return the bytes that activations may take, None where the free memory is unknown."""
    free = free_memory(compute.device)
    if free is None:
        return None
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    weights = TRAINED_BYTES * trained
    if compute.device.type == "cuda":
        return GPU_SHARE * free - GPU_RESERVE - weights
    return min(CPU_ACTIVATIONS, free / 2 - weights)
