"""Define experiments: `Recipe` and its four sections of keys, each with default, range and meaning.

A recipe holds what defines an experiment. What only selects work (fold, resume, device, paths) is
an option of the command, so two runs of one recipe are the same experiment.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal

import tomli_w

from kit.recipe.keys import key, list_keys

Shape = Literal["siamese", "cross", "judge"]
Quantize = Literal["none", "8bit", "4bit"]


@dataclass(frozen=True)
class EncodeSpec:
    """Keys of how a row becomes tokens."""

    max_tokens: int = key(
        512,
        "token budget of one sequence: of a side, or of the whole row under the shapes `cross` and "
        "`judge`; special tokens and frame included",
        source="`kit backbones` shows what the pretraining saw: a hard limit, except for DeBERTa "
        "with its relative positions",
        between=(8, 8192),
    )
    prompt_share: float = key(
        0.25,
        "share of the budget that the prompt keeps at least where a sequence does not fit; more "
        "where the answers leave room",
        source="20 to 25% in other people's work on this data",
        between=(0, 1),
    )
    head_share: float = key(
        0.5,
        "of a turn that is cut, the share of the kept tokens that comes from its beginning; the "
        "rest comes from its end",
        source="Sun et al. 2019, How to Fine-Tune BERT",
        between=(0, 1),
    )
    frame: Literal["plain", "chat"] = key(
        "plain",
        "under the shape `judge`, the text around prompt and answers: headings and a closing "
        "question, or these inside the model's own chat template",
        source="both are used by winners of this competition",
        added=True,
    )


@dataclass(frozen=True)
class ModelSpec:
    """Keys of the network: shape, pooling, head, features."""

    shape: Shape = key(
        "siamese",
        "`siamese` reads (prompt, answer) once for each answer; `cross` reads the prompt and both "
        "answers in one sequence, in both orders; `judge` does so with a decoder, whose last token "
        "gives the verdict",
        source="Reimers & Gurevych 2019; Humeau et al. 2020; all winners of 2024 for `judge`",
    )
    pooling: Literal["auto", "mean", "cls", "attention", "last"] = key(
        "auto",
        "how the states of a sequence become one vector; `auto` is the registry's choice for the "
        "backbone, `cls` under `cross` and `last` under `judge`",
        source="Yang et al. 2016 for `attention`",
    )
    head: Literal["symmetric", "fusion"] = key(
        "symmetric",
        "`fusion` classifies [a; b; a−b; a⊙b]; with `symmetric`, swapping the answers permutes the "
        "classes exactly",
        source="Conneau et al. 2017 (InferSent)",
    )
    head_hidden: int = key(256, "width of the head's hidden layer", between=(1, 65536))
    head_dropout: float = key(
        0.1,
        "dropout on the head's inputs and hidden units",
        source="Srivastava et al. 2014; 0 to 0.1 in other people's work on this data",
        between=(0, 0.9),
    )
    features: bool = key(
        False,
        "add length, format and language of both answers, and how alike they are, to the head's "
        "inputs",
        source="0.005 to 0.010 of log loss in other people's work on this data",
    )
    reward: bool = key(
        False,
        "the backbone is a reward model: its reward of each side joins the side's vector, and the "
        "logits begin with their difference",
        source="Bradley & Terry 1952; Ouyang et al. 2022",
    )
    fast_attention: bool = key(
        True,
        "use kit's own attention and dropout where they are faster: DeBERTa everywhere, other "
        "families in training on a CPU, where no padding is computed either; equal up to rounding. "
        "With `false`, a CPU computes in float32 unless bf16 is asked for",
        source="He et al. 2021 (DeBERTa)",
    )
    quantize: Quantize = key(
        "none",
        "hold a decoder's frozen weights in 8 or 4 bits each, by bitsandbytes; 8 bits took less "
        "time in other people's work, and lost nothing",
        source="Dettmers et al. 2022 (LLM.int8()), 2023 (QLoRA)",
        added=True,
    )


@dataclass(frozen=True)
class TrainSpec:
    """Keys of training: length, batch, learning rates, regularisation, precision."""

    epochs: float = key(
        3.0,
        "passes over the training rows; may be a fraction",
        source="2 to 3 suit most encoders",
        between=(0.001, 1000),
    )
    max_steps: int = key(
        0, "optimizer steps in all; 0: as many as the epochs need", between=(0, 10**9)
    )
    batch_size: int = key(
        32,
        "rows per optimizer step, over all devices",
        source="32 to 64 for small encoders",
        between=(1, 65536),
    )
    micro_batch_size: int = key(
        0,
        "rows per device and forward pass, the rest by gradient accumulation; 0: the device's "
        "share of the batch",
        between=(0, 65536),
    )
    micro_tokens: int = key(
        0,
        "tokens of a forward pass, padding included: long rows take several passes of the same "
        "step; 0: no limit",
        between=(0, 10**9),
    )
    lr: float = key(
        2e-5,
        "peak learning rate of the encoder's top layer",
        source="2e-5 to 4e-5 for encoders of base size",
        between=(0, 1),
    )
    head_lr: float = key(
        1e-4,
        "peak learning rate of pooling and head, which start from random weights",
        source="1e-4 to 1e-3",
        between=(0, 1),
    )
    layer_decay: float = key(
        1.0,
        "each layer's learning rate is this times that of the layer above; embeddings count as the "
        "layer below the first",
        source="Howard & Ruder 2018; Clark et al. 2020 (ELECTRA)",
        between=(0.01, 1),
    )
    weight_decay: float = key(
        0.01,
        "decoupled weight decay, on all weights but norms and biases",
        source="Loshchilov & Hutter 2019 (AdamW)",
        between=(0, 10),
    )
    adam_epsilon: float = key(
        1e-6,
        "added to Adam's denominator",
        source="1e-6 as in BERT, DeBERTa and ELECTRA",
        between=(1e-12, 1),
    )
    max_grad_norm: float = key(
        1.0,
        "gradients are clipped to this norm",
        source="Pascanu et al. 2013",
        between=(1e-6, 1e6),
    )
    schedule: Literal["linear", "cosine", "constant", "plateau"] = key(
        "linear",
        "how the rates move after warm-up: to 0 linearly or along a cosine, constant, or reduced "
        "on plateaus",
        source="Loshchilov & Hutter 2017 for `cosine`",
    )
    head_only: float = key(
        0.0,
        "share of all steps, at the beginning, in which only pooling and head learn; the encoder's "
        "warm-up comes after it",
        source="Kumar et al. 2022 (LP-FT)",
        between=(0, 0.9),
    )
    warmup: float = key(
        0.1,
        "share of all steps over which the rates rise linearly from 0",
        source="Mosbach et al. 2021",
        between=(0, 1),
    )
    reinit_layers: int = key(
        0,
        "top layers of the encoder that start from fresh weights",
        source="Zhang et al. 2021: 1 to 6 for large encoders on few rows",
        between=(0, 1000),
    )
    plateau_factor: float = key(
        0.5,
        "under `plateau`, the factor of each reduction",
        source="the reference study",
        between=(0.01, 1),
    )
    plateau_patience: int = key(
        1,
        "under `plateau`, evaluations without a better loss before a reduction",
        source="left open by the reference study",
        between=(0, 1000),
    )
    label_smoothing: float = key(
        0.0,
        "share of each label's weight that is spread over all classes, in training only",
        source="Szegedy et al. 2016; the reference study has 0.1",
        between=(0, 0.9),
    )
    swap_augmentation: bool = key(
        False,
        "also learn from each row with its answers swapped, in the same step; a symmetric head "
        "needs none",
    )
    r_drop: float = key(
        0.0,
        "weight of the divergence between two dropout passes; 0: off, 1 to 5 are usual; nearly "
        "doubles the time",
        source="Liang et al. 2021",
        between=(0, 100),
    )
    teacher: str = key(
        "",
        "hash of the out-of-fold predictions that are learned from beside the labels; "
        "`kit train --teacher` sets it",
        source="Hinton et al. 2015",
        added=True,
    )
    teacher_weight: float = key(
        0.7,
        "with a teacher, the weight of the divergence from it; the labels have the rest",
        source="0.7 to 0.9 in the systems that won on such data",
        between=(0, 1),
        added=True,
    )
    teacher_temperature: float = key(
        1.0,
        "with a teacher, both distributions are softened by this before they are compared",
        source="1 for averaged probabilities; Hinton et al. 2015",
        between=(0.1, 100),
        added=True,
    )
    evals_per_epoch: int = key(
        2,
        "validations, and checkpoints, per epoch; the best one by log loss is kept",
        source="Dodge et al. 2020",
        between=(1, 1000),
    )
    patience: int = key(
        0,
        "evaluations without a better loss before training stops; 0: never",
        source="Prechelt 1998",
        between=(0, 1000),
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key(
        "auto",
        "`auto` on a GPU: bf16 from compute capability 8.0, fp16 with loss scaling from 7.0, else "
        "float32; on a CPU: bf16 where it has AMX or AVX-512 BF16 and kit's attention runs an "
        "encoder of at least 128 hidden units, else float32",
        source="Micikevicius et al. 2018",
    )
    gradient_checkpointing: bool = key(
        False,
        "recompute activations instead of keeping them: less memory, a third more time",
        source="Chen et al. 2016",
    )
    compile: bool = key(
        False,
        "train the encoder through torch.compile, with lengths padded to multiples of 64; the "
        "first steps take minutes, so measure before you keep it",
    )
    frozen: bool = key(
        False,
        "train the head alone: the backbone reads every row once, and what it makes of them is "
        "kept on disk, so that further trainings take minutes",
        source="4B decoders frozen under a Siamese head reached 1.006 on this data",
        added=True,
    )
    shard: bool = key(
        False,
        "under torchrun, keep a part of the frozen weights on each GPU, and gather a layer when it "
        "is needed: for a base that one GPU cannot hold",
        source="Zhao et al. 2023 (FSDP)",
        added=True,
    )
    lora_rank: int = key(
        0,
        "0 trains the encoder's own weights; otherwise adapters of this rank on its attention and "
        "feed-forward layers, which want ten times the rates",
        source="Hu et al. 2022 (LoRA); Schulman et al. 2025 on the rates",
        between=(0, 1024),
    )
    lora_alpha: float = key(
        32.0,
        "an adapter's output is multiplied by lora_alpha / lora_rank",
        source="Hu et al. 2022",
        between=(0.01, 10_000),
    )
    lora_dropout: float = key(
        0.0, "dropout on an adapter's inputs", source="Hu et al. 2022", between=(0, 0.9)
    )
    seed: int = key(
        0,
        "seed of the head's first weights, the order of rows, and dropout",
        between=(0, 2**32 - 1),
    )


@dataclass(frozen=True)
class PredictSpec:
    """Keys of prediction."""

    swap: bool = key(
        True,
        "average the probabilities over both orders of the answers; free, since the encoder reads "
        "what both need",
        source="Zheng et al. 2023 on position bias",
    )


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: the recipe's name; the run's name begins with it.
        backbone: a name from `kit backbones`, a folder in Hugging Face layout, or a hub id.
        purpose: what the recipe is for, in one sentence.
    """

    name: str
    backbone: str
    purpose: str = ""
    encode: EncodeSpec = field(default_factory=EncodeSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    predict: PredictSpec = field(default_factory=PredictSpec)

    @property
    def hash(self) -> str:
        """Eight hex digits of a hash of everything except the name and the purpose."""
        content = dataclasses.asdict(self)
        del content["name"], content["purpose"]
        for name, value in RETIRED.items():
            section, _, gone = name.partition(".")
            content[section][gone] = value
        for recipe_key in KEYS.values():
            section, _, name = recipe_key.name.partition(".")
            if recipe_key.added and content[section][name] == recipe_key.default:
                del content[section][name]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        """The run directory's name. The hash keeps an overridden run from overwriting another."""
        return f"{self.name}-{self.hash}"

    def to_toml(self) -> str:
        """Return the whole recipe as TOML, defaults included; `load_recipe` reads it back."""
        return tomli_w.dumps(dataclasses.asdict(self))


# Keys that are gone, because nothing was gained by them (docs/results.md), with the values at which
# they did nothing. A recipe that was written with these is read, and hashes count them: so the runs
# of before keep their names.
RETIRED = {"train.ema": 0.0, "train.awp": 0.0, "train.awp_start": 0.2}

# Every key by its name, such as "train.lr".
KEYS = {recipe_key.name: recipe_key for recipe_key in list_keys(Recipe)}
