"""Train low-rank adapters (Hu et al. 2022) in place of an encoder's own weights.

Use `add_adapters` before training, and `merge_adapters` for ordinary weights after it. The adapters
are peft's. The encoder's own weights need no gradient and no moments meanwhile, and may be of half
precision.
"""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

from torch import nn

from kit.errors import RecipeError
from kit.model.encoder import layer_index
from kit.recipe.spec import TrainSpec


@dataclass(frozen=True)
class AdapterSpec:
    """What adapters are built from; the keys `train.lora_*` of a recipe."""

    rank: int
    alpha: float
    dropout: float

    @classmethod
    def of_recipe(cls, spec: TrainSpec) -> "AdapterSpec":
        """Return the adapters that a recipe asks for; its rank is not 0."""
        return cls(spec.lora_rank, spec.lora_alpha, spec.lora_dropout)


def require_peft(rank: int) -> None:
    """Raise RecipeError if there are adapters of this rank, not 0, and peft is not installed."""
    if not rank:
        return
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"train.lora_rank = {rank} needs peft, which cannot be imported: {error}",
            "Run `pip install 'peft>=0.18'`, or set train.lora_rank=0.",
        ) from error


def add_adapters(encoder: nn.Module, spec: AdapterSpec) -> None:
    """Freeze the encoder, and add an adapter to each linear layer of its transformer layers.

    Adapters are float32 whatever the encoder is: fp16 ones would lose their updates to rounding,
    and the loss scaler refuses their gradients.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype

    from kit.model.adapter_layer import quicken_adapters

    linear_layers = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and layer_index(f"encoder.{name}.") is not None
    ]
    config = LoraConfig(
        r=spec.rank,
        # peft declares an int, and divides it by the rank.
        lora_alpha=spec.alpha,  # ty: ignore[invalid-argument-type]
        lora_dropout=spec.dropout,
        target_modules=linear_layers,
    )
    with _without_torchao():
        inject_adapter_in_model(config, encoder)
    cast_adapter_dtype(encoder, "default")

    # peft would turn each layer's input into float32 for its adapter, and autocast back into what
    # it was: a fifth of a training's memory. ty takes peft's flag for a part of the module.
    for module in encoder.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # ty: ignore[invalid-assignment]
    quicken_adapters(encoder)


@contextlib.contextmanager
def _without_torchao() -> Generator[None]:
    """Keep peft from looking at an installed torchao.

    For every linear layer peft asks whether torchao quantised it, and since peft 0.19 it raises
    ImportError where torchao is older than 0.16, as in Kaggle's and Colab's images. The layers of
    kit's encoders are never quantised.
    """
    from peft.tuners.lora import torchao

    original = torchao.is_torchao_available
    # ty wants another cached function here.
    torchao.is_torchao_available = lambda: False  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        torchao.is_torchao_available = original


def merge_adapters(encoder: nn.Module) -> None:
    """Add every adapter to its layer's weight and remove it; the outputs stay the same."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # The list is complete before a module is replaced.
    adapted = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    for name, module in adapted:
        module.merge(safe_merge=True)
        encoder.set_submodule(name, module.get_base_layer())
    encoder.requires_grad_(True)
