"""Low-rank adapters (Hu et al. 2022) in place of an encoder's own weights, which then need no gradient and no moments.

They are peft's, put into the encoder where it stands and merged into its weights at the end, so
that a run directory holds ordinary weights and prediction needs no peft.
"""

from torch import nn

from kit.errors import RecipeError
from kit.recipe.spec import TrainSpec
from kit.training.optim import layer_of


def require_peft(spec: TrainSpec) -> None:
    """Raises RecipeError where the recipe wants adapters and peft is not installed."""
    if not spec.lora_rank:
        return
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"train.lora_rank = {spec.lora_rank} needs peft, which cannot be imported: {error}",
            "Run `pip install 'peft>=0.18'`, or set train.lora_rank=0.",
        ) from error


def add_adapters(encoder: nn.Module, spec: TrainSpec) -> None:
    """Freezes the encoder and puts an adapter on every linear layer of its attention and feed-forward blocks."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=spec.lora_rank,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=[
            name
            for name, module in encoder.named_modules()
            if isinstance(module, nn.Linear) and layer_of(f"encoder.{name}.") is not None
        ],
    )
    inject_adapter_in_model(config, encoder)


def merge_adapters(encoder: nn.Module) -> None:
    """Adds every adapter to the weight it stands on and takes it away; the encoder computes the same as before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    for name, module in adapted:
        module.merge(safe_merge=True)
        encoder.set_submodule(name, module.get_base_layer())
    encoder.requires_grad_(True)
