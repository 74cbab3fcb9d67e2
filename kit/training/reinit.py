"""Fresh weights for the top layers: what pretraining left there is often too special, and unsteady to start from."""

from torch import nn

from kit.errors import RecipeError
from kit.training.optim import layer_of


def reinitialise(encoder: nn.Module, layers: int) -> None:
    """Draws the weights of the top `layers` of a transformers encoder anew, as its own architecture begins.

    Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning": with fresh top layers (1 to 6 of 24) fine-tuning is
    steadier and learns faster. What stands outside the layers is left alone: embeddings, DeBERTa's relative positions
    and norm over them, ModernBERT's final norm. The draw follows torch's global seed.

    Raises:
        RecipeError: the encoder has fewer layers.
    """
    if not layers:
        return
    depth = 1 + max(
        (layer_of("." + name) or 0 for name, _ in encoder.named_parameters()), default=0
    )
    if layers > depth:
        raise RecipeError(
            f"train.reinit_layers = {layers}, but the encoder has {depth} layers",
            "Usual are 1 to a quarter of them.",
        )
    named = ((layer_of(f".{name}."), module) for name, module in encoder.named_modules())
    chosen = [module for layer, module in named if layer is not None and layer >= depth - layers]
    for module in chosen:  # all of them first: some draw for the modules inside them
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = (
                False  # or transformers 5 takes it for loaded, and draws nothing
            )
    for module in chosen:
        encoder._init_weights(module)
