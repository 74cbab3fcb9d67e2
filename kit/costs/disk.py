"""Calculate what a training writes. Use `training_disk`."""

from dataclasses import dataclass

from kit.costs.estimate import trained_parameters
from kit.costs.sizes import ModelSizes
from kit.recipe.spec import Recipe

# A weight is saved in float32; its optimizer keeps two moments of it.
WEIGHT_BYTES = 4
MOMENT_BYTES = 8

# A row of a prediction file, in bytes: an id and three probabilities.
PREDICTION_BYTES = 80

# The best checkpoint and the last are kept, while the next is being written.
CHECKPOINTS_AT_ONCE = 3


@dataclass(frozen=True)
class DiskUse:
    """Bytes of one fold.

    Attributes:
        output: of its model and its predictions, which stay.
        checkpoints: of those that are there at the same time until it is finished.
    """

    output: int
    checkpoints: int


def training_disk(sizes: ModelSizes, recipe: Recipe, valid_rows: int) -> DiskUse:
    """Return what one fold takes.

    An encoder's adapters are merged, so it is saved whole; of a judge only the adapters are saved.
    """
    spec = recipe.train
    trained = trained_parameters(sizes, spec)
    is_whole = not spec.frozen and (recipe.model.shape != "judge" or not spec.lora_rank)
    weights = WEIGHT_BYTES * (sizes.parameters if is_whole else trained)
    checkpoint = weights + MOMENT_BYTES * trained
    return DiskUse(
        output=weights + PREDICTION_BYTES * valid_rows,
        checkpoints=CHECKPOINTS_AT_ONCE * checkpoint,
    )
