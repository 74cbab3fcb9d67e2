"""Estimate operations and time by formulas. Use `estimate_training` and `estimate_prediction`.

A forward pass takes 2 operations for each weight of the layers and each token (Kaplan et al. 2020),
and attention's besides. A backward pass takes twice as many; half of that where the weights are
frozen beside adapters. Recomputed activations are another forward pass. What moves data and
computes little is counted in bytes, by constants that were fitted to `planning.counted`;
`benchmarks/plan.py` compares the two.
"""

from dataclasses import dataclass

from kit.costs.devices import DeviceModel
from kit.costs.lengths import RowLengths
from kit.costs.sizes import ModelSizes
from kit.costs.steps import evaluated_rows, rows_per_pass, training_steps
from kit.recipe.spec import Recipe, TrainSpec

# Bytes that a layer's forward pass moves outside of products, for a token: of each hidden unit (in
# DeBERTa, with rotary positions, in other families) and each unit of the feed-forward layer, and
# where there are more norms than two, of each unit of queries and keys and of each hidden unit.
STATE_BYTES = {"disentangled": 170, "rotary": 145, "plain": 90}
GATED_BYTES, INNER_BYTES = 10, 4
QUERY_NORM_BYTES, OUTPUT_NORM_BYTES = 57, 132

# DeBERTa's scores of positions, for a head and a pair of tokens: operations a unit of its width,
# and bytes.
POSITION_OPERATIONS = 5.1
POSITION_BYTES = 7.3

# Bytes for a weight and pass: its cast to half precision, and in a training its gradient's cast and
# sum.
CAST_BYTES, GRADIENT_SUM_BYTES = 6, 10

# The same for an adapter beside every matrix, its casts and sums: of each hidden unit, and of each
# unit of the feed-forward layer.
ADAPTER_BYTES, ADAPTER_INNER_BYTES = 50, 8

# The share of padding and of position tables, in tokens.
PADDING_FACTOR = 1.03

# Kernels that a layer's forward pass starts, and rectangles that a pass is cut into.
LAYER_KERNELS = {"disentangled": 70, "rotary": 40, "plain": 35}
PACKS = 1.8

# Bytes of a gradient on its way to the other GPU, which is sent in fp16, and the share of gradient
# bytes, other than the embeddings', that is not hidden behind the backward pass. The embeddings'
# gradient is ready last, so all of it is exposed.
EXCHANGE_BYTES = 2
EXPOSED_SHARE = 0.3

# AdamW, clipping and unscaling read or write ten numbers of four bytes for a parameter.
UPDATE_BYTES = 40


@dataclass(frozen=True)
class TrainingEstimate:
    """Estimated operations and time of one fold's training.

    Attributes:
        operations: of the whole training, evaluations included.
        operations_per_row: of a training row, recomputation and padding included.
        seconds_per_row: of one device.
        training_hours: of all devices together, without evaluations.
        evaluation_hours: of all evaluations.
        shared_hours: of the training's hours, those that are spent once for all folds.
    """

    operations: float
    operations_per_row: float
    seconds_per_row: float
    training_hours: float
    evaluation_hours: float
    shared_hours: float = 0.0

    @property
    def hours(self) -> float:
        """Hours of a fold, evaluations included."""
        return self.training_hours + self.evaluation_hours

    def hours_of(self, folds: int) -> float:
        """Return the hours of so many folds in one session."""
        return folds * self.hours - (folds - 1) * self.shared_hours


@dataclass(frozen=True)
class _SequenceCost:
    """Operations, and seconds by what takes them, of a stage of one mean sequence.

    `products` with weights, `attention`, and `moves` of data.
    """

    operations: float
    products: float
    attention: float
    moves: float

    @property
    def seconds(self) -> float:
        return self.products + self.attention + self.moves


def estimate_training(
    recipe: Recipe, sizes: ModelSizes, lengths: RowLengths, device: DeviceModel, devices: int = 1
) -> TrainingEstimate:
    """Estimate one fold's training on so many devices.

    A frozen encoder reads the rows once, and what the head takes then is not counted.

    Raises:
        RecipeError: the batch size does not fit so many.
    """
    spec = recipe.train
    steps = training_steps(spec, lengths.train_rows)
    trained = trained_parameters(sizes, spec)
    sequences = sequences_per_row(recipe, training=True)
    forward = _forward_cost(sizes, lengths, device, adapters=spec.lora_rank > 0)
    if spec.frozen:
        rows = lengths.train_rows + lengths.valid_rows
        operations = sequences * forward.operations
        seconds = sequences * forward.seconds
        hours = rows * seconds / devices / 3600
        return TrainingEstimate(rows * operations, operations, seconds, hours, 0.0, hours)
    backward = _backward_cost(forward, device, frozen=spec.lora_rank > 0)

    # R-Drop runs every pass twice.
    runs = 1 + bool(spec.r_drop)
    forwards = 1 + spec.gradient_checkpointing
    on_device = runs * sequences * (forwards * forward.seconds + backward.seconds)
    operations = runs * sequences * (forwards * forward.operations + backward.operations)

    # A pass casts every weight and projects DeBERTa's distances, and its kernels are launched.
    rows = rows_per_pass(spec, devices)
    if spec.micro_tokens:
        rows = min(rows, max(1, spec.micro_tokens / (sequences * lengths.mean_tokens)))
    cast = CAST_BYTES * forwards * sizes.layer_parameters + GRADIENT_SUM_BYTES * trained
    tables = 4 * sizes.layers * sizes.distances * sizes.hidden**2 * PACKS * (forwards + 2)
    on_device += runs * (cast / device.bandwidth + tables / device.matmul) / rows
    kernels = LAYER_KERNELS[_kind(sizes)] * sizes.layers * PACKS * (forwards + 2)
    on_host = runs * kernels * device.launch_seconds / rows
    seconds_per_row = max(on_device, on_host)

    seen = steps.total * spec.batch_size
    step = step_seconds(trained, sizes.embedding_parameters, device, devices)
    training = seen * seconds_per_row / devices + steps.total * step
    evaluated = evaluated_rows(steps.evaluations, lengths.valid_rows)
    evaluated *= sequences_per_row(recipe, training=False)
    return TrainingEstimate(
        operations=seen * operations + evaluated * forward.operations,
        operations_per_row=operations,
        seconds_per_row=seconds_per_row,
        training_hours=training / 3600,
        evaluation_hours=evaluated * forward.seconds / devices / 3600,
    )


def estimate_prediction(
    recipe: Recipe,
    sizes: ModelSizes,
    lengths: RowLengths,
    rows: int,
    device: DeviceModel,
    devices: int = 1,
    *,
    both_orders: bool = True,
) -> float:
    """Return the hours in which one model predicts so many rows, adapters merged."""
    sequences = sequences_per_row(recipe, training=False, both_orders=both_orders)
    seconds = _forward_cost(sizes, lengths, device, adapters=False).seconds
    return rows * sequences * seconds / devices / 3600


def sequences_per_row(recipe: Recipe, *, training: bool, both_orders: bool | None = None) -> int:
    """Return how many sequences of a row the encoder reads.

    Two, the sides, or the row in both orders; one where a head that is not symmetric learns or
    predicts from one order of a joint sequence.

    Args:
        both_orders: of a prediction, by default as the recipe says.
    """
    if recipe.model.shape == "siamese" or recipe.model.head == "symmetric":
        return 2
    if training:
        return 2 if recipe.train.swap_augmentation else 1
    return 2 if (recipe.predict.swap if both_orders is None else both_orders) else 1


def trained_parameters(sizes: ModelSizes, spec: TrainSpec) -> int:
    """Return the encoder's parameters that have a gradient: all, none, or its adapters'."""
    if spec.frozen:
        return 0
    if spec.lora_rank:
        return sizes.adapter_parameters(spec.lora_rank)
    return sizes.parameters


def step_seconds(trained: int, embedding: int, device: DeviceModel, devices: int) -> float:
    """Return the seconds of an optimizer step beyond its passes: the update and the exchange.

    Args:
        embedding: parameters of the embeddings, trained or not.
    """
    update = UPDATE_BYTES * trained / device.bandwidth
    if devices == 1:
        return update
    last = min(embedding, trained) if trained > embedding else 0
    exposed = last + EXPOSED_SHARE * (trained - last)
    return update + EXCHANGE_BYTES * exposed / device.link


def _kind(sizes: ModelSizes) -> str:
    if sizes.distances:
        return "disentangled"
    return "rotary" if sizes.rotary else "plain"


def _forward_cost(
    sizes: ModelSizes, lengths: RowLengths, device: DeviceModel, *, adapters: bool
) -> _SequenceCost:
    """Return the cost of a mean sequence's forward pass."""
    tokens = PADDING_FACTOR * lengths.mean_tokens
    square = PADDING_FACTOR * lengths.mean_square

    products = 2 * sizes.layer_parameters * tokens
    attention = 4 * sizes.layers * sizes.width * square * (0.5 if sizes.causal else 1)
    state = STATE_BYTES[_kind(sizes)]
    inner = GATED_BYTES if sizes.gated else INNER_BYTES
    if adapters:
        state += ADAPTER_BYTES
        inner += ADAPTER_INNER_BYTES
    if sizes.output_norms:
        state += OUTPUT_NORM_BYTES
    token_bytes = state * sizes.hidden + inner * sizes.inner + QUERY_NORM_BYTES * sizes.normed_width
    moved = sizes.layers * tokens * token_bytes
    positions = 0.0
    if sizes.distances:
        positions = POSITION_OPERATIONS * sizes.layers * sizes.width * square
        moved += POSITION_BYTES * sizes.layers * sizes.heads * square

    attention_seconds = attention / device.attention_forward + positions / device.batched_matmul
    return _SequenceCost(
        operations=products + attention + positions,
        products=products / device.matmul,
        attention=attention_seconds,
        moves=moved / device.bandwidth,
    )


def _backward_cost(forward: _SequenceCost, device: DeviceModel, *, frozen: bool) -> _SequenceCost:
    """Return the cost of a mean sequence's backward pass.

    Fused kernels compute attention's scores again: 10 operations for 4 of the forward pass.
    """
    slower = 2.5 * device.attention_forward / device.attention_backward
    products = 1 if frozen else 2
    return _SequenceCost(
        operations=products * forward.operations,
        products=products * forward.products,
        attention=slower * forward.attention,
        moves=2 * forward.moves,
    )
