"""One experiment, as a frozen record: what may stand in it, its defaults and ranges, and its hash.

A recipe holds what defines an experiment. What only selects work (fold, resume, device, paths) is a command-line
option and never stands here, so two runs of one recipe are the same experiment.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal

import tomli_w

Shape = Literal["siamese", "cross"]


@dataclass(frozen=True)
class EncodeSpec:
    """How a row becomes tokens.

    max_tokens: budget of one sequence, special tokens included: of a side, or of a whole row under the shape "cross".
    prompt_share: where a sequence does not fit, the prompt keeps at least this share of the budget, and more if the
    responses leave it free.
    head_share: of a turn that has to be cut, this share of what is kept comes from its beginning, the rest its end.
    """

    max_tokens: int = 512
    prompt_share: float = 0.25
    head_share: float = 0.5


@dataclass(frozen=True)
class ModelSpec:
    """How the encoder computes its attention, and what stands on it.

    shape: "siamese" reads (prompt, answer) once for each answer; "cross" reads prompt and both answers in one
    sequence, so that each answer is read in view of the other, and does so in both orders of the answers.
    fast_attention: kit's own code for attention and dropout where transformers and torch have no fast one, for DeBERTa
    everywhere and for the other families in training on a CPU; the same numbers to rounding. Without it a CPU
    computes in float32 unless bf16 is asked for.
    pooling: "auto" is the registry's choice for the backbone, and "cls" under "cross".
    head: "fusion" is the reference's classifier on [a; b; a-b; a*b], or under "cross" on the row as it stands alone;
    "symmetric" permutes exactly with its inputs.
    features: length, format and language of both answers, and their likeness, join the encoder's vectors in the head.
    reward: the backbone is a reward model; its reward of each side joins the side's vector, and the difference of the
    two, as likely as it says, is what the logits begin with.
    """

    shape: Shape = "siamese"
    pooling: Literal["auto", "mean", "cls", "attention"] = "auto"
    head: Literal["symmetric", "fusion"] = "symmetric"
    head_hidden: int = 256
    head_dropout: float = 0.1
    features: bool = False
    reward: bool = False
    fast_attention: bool = True


@dataclass(frozen=True)
class TrainSpec:
    """How the weights move.

    lr: the top layer's peak rate; layer k below the top gets lr * layer_decay**k; the head has head_lr.
    batch_size: rows per optimizer step, over all devices; micro_batch_size: rows per device and forward pass
    (0 = as many as batch_size asks for), the rest by gradient accumulation. micro_tokens: the most tokens, padding
    included, of a forward pass (0 = no limit): long rows go through in several passes, short ones in one, and the step
    is the same (but for awp, which perturbs each pass by itself).
    schedule: "plateau" multiplies by plateau_factor after plateau_patience evaluations without a better loss.
    head_only: share of all steps at the beginning in which only pooling and head learn, at their own warm-up's rates;
    then the encoder's warm-up begins, and the schedule's curve after that.
    warmup: share of all steps over which the rate climbs linearly from 0.
    reinit_layers: top layers of the encoder that start from fresh weights (Zhang et al. 2021: 1 to 6 steady the
    fine-tuning of large encoders on few rows).
    ema: decay of a running mean of the weights, which is what is then evaluated and kept; 0 = off, 0.999 is usual.
    awp: adversarial weight perturbation of this size relative to the weights (0 = off, 0.001 to 0.01 are usual), from
    awp_start on, a share of all steps; twice the time. r_drop: weight of the divergence between two dropout passes
    (0 = off, Liang et al. 2021 use 1 to 5); nearly twice the time.
    evals_per_epoch: validations (and checkpoints) per epoch; patience: of them without gain before stopping, 0 = never.
    max_steps: optimizer steps in all; 0 = as many as the epochs ask for.
    swap_augmentation: each step learns from its rows and from their copies with the answers swapped, at no second pass
    through the encoder. A symmetric head needs none: both orders are one to it.
    compile: train the encoder through torch.compile, with lengths padded to multiples of 64; the first steps take
    minutes.
    lora_rank: 0 trains the encoder's own weights; otherwise adapters of this rank on all its attention and feed-forward
    layers, at the encoder's rates, which then want ten times the height (Schulman et al. 2025, LoRA Without Regret).
    lora_alpha: an adapter's output counts lora_alpha / lora_rank times; lora_dropout: share of its inputs left out.
    """

    epochs: float = 3.0
    max_steps: int = 0
    batch_size: int = 32
    micro_batch_size: int = 0
    micro_tokens: int = 0
    lr: float = 2e-5
    head_lr: float = 1e-4
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 1.0
    schedule: Literal["linear", "cosine", "constant", "plateau"] = "linear"
    head_only: float = 0.0
    warmup: float = 0.1
    reinit_layers: int = 0
    plateau_factor: float = 0.5
    plateau_patience: int = 1
    label_smoothing: float = 0.0
    swap_augmentation: bool = False
    ema: float = 0.0
    awp: float = 0.0
    awp_start: float = 0.2
    r_drop: float = 0.0
    evals_per_epoch: int = 4
    patience: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class PredictSpec:
    """swap: average the probabilities over both orders of the answers; free, since the encoder reads what both need."""

    swap: bool = True


@dataclass(frozen=True)
class Recipe:
    """One experiment. `backbone` is a registry name or a directory in Hugging Face layout."""

    name: str
    backbone: str
    purpose: str = ""
    encode: EncodeSpec = field(default_factory=EncodeSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    predict: PredictSpec = field(default_factory=PredictSpec)

    @property
    def hash(self) -> str:
        """Eight hex digits over everything but the name and the purpose."""
        content = {
            k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "purpose")
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        """The run directory's name; the hash keeps an overridden run from overwriting another."""
        return f"{self.name}-{self.hash}"

    def to_toml(self) -> str:
        """The whole recipe, defaults included, as TOML that `kit.recipe.load.load_recipe` reads back to an equal recipe."""
        return tomli_w.dumps(dataclasses.asdict(self))


RANGES: dict[str, tuple[float, float]] = {
    "encode.max_tokens": (8, 8192),
    "encode.prompt_share": (0, 1),
    "encode.head_share": (0, 1),
    "model.head_hidden": (1, 65536),
    "model.head_dropout": (0, 0.9),
    "train.epochs": (0.001, 1000),
    "train.max_steps": (0, 10**9),
    "train.batch_size": (1, 65536),
    "train.micro_batch_size": (0, 65536),
    "train.micro_tokens": (0, 10**9),
    "train.lr": (0, 1),
    "train.head_lr": (0, 1),
    "train.layer_decay": (0.01, 1),
    "train.weight_decay": (0, 10),
    "train.adam_epsilon": (1e-12, 1),
    "train.max_grad_norm": (1e-6, 1e6),
    "train.head_only": (0, 0.9),
    "train.warmup": (0, 1),
    "train.reinit_layers": (0, 1000),
    "train.plateau_factor": (0.01, 1),
    "train.plateau_patience": (0, 1000),
    "train.label_smoothing": (0, 0.9),
    "train.ema": (0, 0.999999),
    "train.awp": (0, 1),
    "train.awp_start": (0, 1),
    "train.r_drop": (0, 100),
    "train.evals_per_epoch": (1, 1000),
    "train.patience": (0, 1000),
    "train.lora_rank": (0, 1024),
    "train.lora_alpha": (0.01, 10_000),
    "train.lora_dropout": (0, 0.9),
    "train.seed": (0, 2**32 - 1),
}
