"""Read the weights that a training left."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file


def weights(summary: dict[str, Any]) -> dict[str, bytes]:
    """Return the bytes of each tensor of the holdout's model, given what `train_recipe` returns."""
    tensors = load_file(Path(summary["run"]) / "holdout/model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
