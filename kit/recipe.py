"""One experiment, as a frozen record: TOML in, overrides, checks, hash.

A recipe holds what defines an experiment. What only selects work (fold, resume, device, paths) is a command-line
option and never stands here, so two runs of one recipe are the same experiment.
"""

import dataclasses
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w

from kit.errors import RecipeError


@dataclass(frozen=True)
class EncodeSpec:
    """How a row becomes tokens.

    max_tokens: budget of one side, special tokens included.
    prompt_share: where a side does not fit, the prompt keeps at least this share of the budget, and more if the
    response leaves it free.
    head_share: of a turn that has to be cut, this share of what is kept comes from its beginning, the rest its end.
    """

    max_tokens: int = 512
    prompt_share: float = 0.25
    head_share: float = 0.5


@dataclass(frozen=True)
class ModelSpec:
    """What stands on the encoder.

    pooling: "auto" is the registry's choice for the backbone.
    head: "fusion" is the reference's classifier on [a; b; a-b; a*b]; "symmetric" permutes exactly with its inputs.
    """

    pooling: Literal["auto", "mean", "cls", "attention"] = "auto"
    head: Literal["symmetric", "fusion"] = "symmetric"
    head_hidden: int = 256
    head_dropout: float = 0.1


@dataclass(frozen=True)
class TrainSpec:
    """How the weights move.

    lr: the top layer's peak rate; layer k below the top gets lr * layer_decay**k; the head has head_lr.
    batch_size: rows per optimizer step, over all devices; micro_batch_size: rows per device and forward pass
    (0 = as many as batch_size asks for), the rest by gradient accumulation.
    schedule: "plateau" multiplies by plateau_factor after plateau_patience evaluations without a better loss.
    warmup: share of all steps over which the rate climbs linearly from 0.
    evals_per_epoch: validations (and checkpoints) per epoch; patience: of them without gain before stopping, 0 = never.
    max_steps: optimizer steps in all; 0 = as many as the epochs ask for.
    """

    epochs: float = 3.0
    max_steps: int = 0
    batch_size: int = 32
    micro_batch_size: int = 0
    lr: float = 2e-5
    head_lr: float = 1e-4
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 1.0
    schedule: Literal["linear", "cosine", "constant", "plateau"] = "linear"
    warmup: float = 0.1
    plateau_factor: float = 0.5
    plateau_patience: int = 1
    label_smoothing: float = 0.0
    evals_per_epoch: int = 4
    patience: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    seed: int = 0


@dataclass(frozen=True)
class PredictSpec:
    """swap: average the probabilities over both orders of the answers; free for an encoder that sees one at a time."""

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
        content = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "purpose")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        """The run directory's name; the hash keeps an overridden run from overwriting another."""
        return f"{self.name}-{self.hash}"

    def to_toml(self) -> str:
        """The whole recipe, defaults included, as TOML that `load` reads back to an equal recipe."""
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
    "train.lr": (0, 1),
    "train.head_lr": (0, 1),
    "train.layer_decay": (0.01, 1),
    "train.weight_decay": (0, 10),
    "train.adam_epsilon": (1e-12, 1),
    "train.max_grad_norm": (1e-6, 1e6),
    "train.warmup": (0, 1),
    "train.plateau_factor": (0.01, 1),
    "train.plateau_patience": (0, 1000),
    "train.label_smoothing": (0, 0.9),
    "train.evals_per_epoch": (1, 1000),
    "train.patience": (0, 1000),
    "train.seed": (0, 2**32 - 1),
}


def shipped() -> dict[str, Path]:
    """Recipes that come with kit, by name."""
    folder = Path(str(resources.files("kit"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(name_or_file: str | Path, overrides: Iterable[str] = (), backbone: str | None = None) -> Recipe:
    """Reads a shipped recipe by name, or a TOML file, and applies `--set` overrides such as `train.lr=2e-5`.

    Raises:
        RecipeError: no such recipe, or a key, type or value that cannot be; the message lists the choices.
    """
    path = shipped().get(str(name_or_file)) or Path(name_or_file)
    if not path.is_file():
        raise RecipeError(f"no recipe {str(name_or_file)!r}", f"Shipped: {', '.join(shipped())}; or name a TOML file.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not TOML, not UTF-8, or a number beyond all bounds
        raise RecipeError(f"{path}: not valid TOML: {error}", "Compare with `kit recipes NAME`.") from error
    values.setdefault("name", path.stem)
    if backbone and backbone != values.get("backbone"):
        values["backbone"] = backbone
        suffix = Path(backbone).resolve().name if Path(backbone).is_dir() else backbone
        values["name"] = suffix if path.stem == "default" else f"{values['name']}-{suffix}"
    for override in overrides:
        _merge(values, _parse_override(override), override)
    if "backbone" not in values:
        raise RecipeError(f"{path}: it names no backbone", "Add `--backbone NAME`; `kit backbones` lists them.")
    recipe = _build(Recipe, values, str(path), "")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", recipe.name):
        raise RecipeError(f"{path}: the name {recipe.name!r} cannot name a folder", "Use letters, digits, '.-_'.")
    return recipe


def choose(backbone: str | None, recipe: str | None, overrides: Iterable[str] = ()) -> Recipe:
    """The experiment a command line asks for: a backbone with its own recipe, a recipe with its own backbone, or both.

    Raises:
        RecipeError: neither is named, or as `load`.
    """
    if not backbone and not recipe:
        raise RecipeError("no backbone and no recipe", "Add --backbone NAME (`kit backbones`) or --recipe NAME.")
    return load(recipe or (backbone if backbone in shipped() else "default"), overrides, backbone)


def _parse_override(text: str) -> dict[str, Any]:
    """`--set KEY=VALUE` is read as the TOML line it is; a bare word may go unquoted, since shells eat quotes."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text!r} is not KEY=VALUE", "For example: --set train.lr=2e-5")
    for line in (text, f"{key}={json.dumps(value.strip())}"):
        try:
            return tomllib.loads(line)
        except ValueError as error:
            failure = error
            if not re.fullmatch(r"\s*[A-Za-z./][\w.\-/]*\s*", value):
                break
    raise RecipeError(f"--set {text!r}: {failure}", "For example: --set train.lr=2e-5")


def _merge(into: dict[str, Any], new: dict[str, Any], source: str) -> None:
    for key, value in new.items():
        if isinstance(value, dict):
            inner = into.setdefault(key, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"--set {source!r}: {key} is a value, not a section", "`kit recipes NAME` shows all.")
            _merge(inner, value, source)
        else:
            into[key] = value


def _build(kind: type, values: Any, source: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise RecipeError(
            f"{source}: [{prefix.rstrip('.')}] must be a section of keys", "`kit recipes NAME` shows one."
        )
    types = get_type_hints(kind)
    unknown = [key for key in values if key not in types]
    if unknown:
        raise RecipeError(
            f"{source}: unknown key {prefix}{unknown[0]}", f"Choices: {', '.join(prefix + name for name in types)}"
        )
    built = {key: _check(types[key], value, source, prefix + key) for key, value in values.items()}
    return kind(**built)


def _check(kind: Any, value: Any, source: str, key: str) -> Any:
    """The value as its type, or an error that says what would have been right."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, source, key + ".")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise RecipeError(f"{source}: {key} = {value!r}", f"Choices: {', '.join(get_args(kind))}")
        return value
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise RecipeError(f"{source}: {key} = {value!r} is not {_article(kind)}", f"For example: {key}={_example(key)}")
    if key in RANGES and not RANGES[key][0] <= value <= RANGES[key][1]:
        low, high = RANGES[key]
        raise RecipeError(f"{source}: {key} = {value} is out of range", f"It lies between {low:g} and {high:g}.")
    return value


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def _example(key: str) -> str:
    section, _, name = key.rpartition(".")
    spec = {"encode": EncodeSpec, "model": ModelSpec, "train": TrainSpec, "predict": PredictSpec}.get(section)
    default = next((f.default for f in dataclasses.fields(spec) if f.name == name), "…") if spec else "…"
    return json.dumps(default, ensure_ascii=False)
