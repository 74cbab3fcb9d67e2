"""List the encoders and decoders kit knows, and find one by its name.

Use `BACKBONES` and `resolve_backbone`.

Sizes are read from the configuration files shipped beside this module, so that none is typed in
twice. The module does not import torch: a push to Kaggle checks a backbone's name without it.
"""

import codecs
import contextlib
import functools
import hashlib
import json
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from kit.attention.families import Family, find_family, is_language_model
from kit.errors import BackboneError, DeviceError
from kit.model.hub import hub_is_reachable, is_in_hub_cache, skip_dead_hub
from kit.recipe.load import SHORT_NAMES, is_hub_id
from kit.storage.atomic import file_sha256, read_text_file
from kit.storage.contents import describe_impostor

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FOLDER_HINT = (
    "A backbone folder holds config.json, model.safetensors and tokenizer files, as Hugging Face "
    "lays it out."
)


@dataclass(frozen=True)
class JudgeFacts:
    """Where a decoder's weights are, beside the hub.

    Attributes:
        gated: the hub gives it to those alone who have accepted its licence.
        kaggle_model: owner/model/framework/variation/version on Kaggle, None where none is known.
    """

    gated: bool = False
    kaggle_model: str | None = None


@dataclass(frozen=True)
class Backbone:
    """One encoder or decoder of the registry.

    Attributes:
        name: the short name, which recipes, runs and downloaded folders keep.
        hub_id: repository on the Hugging Face hub, None for a toy that starts from random weights.
        pooling: what `model.pooling = "auto"` means for it.
        pretraining: objective its weights come from.
        precision: what is known about half precision.
        multilingual: whether its pretraining and its vocabulary cover a hundred languages.
        judge: facts of a decoder, which reads as a judge; None for an encoder.
    """

    name: str
    hub_id: str | None
    pooling: str
    pretraining: str
    licence: str
    precision: str = "fp16 and bf16 autocast"
    multilingual: bool = False
    judge: JudgeFacts | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as the hub publishes it, from the file shipped with kit."""
        file = resources.files("kit.model").joinpath(f"configs/{self.name}.json")
        return json.loads(file.read_text(encoding="utf-8"))

    @property
    def full_name(self) -> str:
        """The name that says the size, such as deberta-xsmall for deberta."""
        return next((full for full, short in SHORT_NAMES.items() if short == self.name), self.name)

    @property
    def parameters(self) -> dict[str, int]:
        """Parameters of the `backbone` (layers), the `embedding` (all tables) and in `total`.

        They are shipped, because counting them takes torch and seconds.
        """
        backbone, embedding = _parameter_counts()[self.name]
        return {"backbone": backbone, "embedding": embedding, "total": backbone + embedding}

    @property
    def max_tokens(self) -> int:
        """Longest sequence in the pretraining, in tokens."""
        return max_positions(self.config) or self.config["max_position_embeddings"]

    @property
    def sizes(self) -> dict[str, int]:
        """Layers, hidden size, heads, feed-forward width, vocabulary, max tokens."""
        config = self.config
        return {
            "layers": config["num_hidden_layers"],
            "hidden": config["hidden_size"],
            "heads": config["num_attention_heads"],
            "ffn": config["intermediate_size"],
            "vocabulary": config["vocab_size"],
            "max_tokens": self.max_tokens,
        }


@functools.cache
def _parameter_counts() -> dict[str, list[int]]:
    file = resources.files("kit.model").joinpath("parameters.json")
    return json.loads(file.read_text(encoding="utf-8"))


_FP16_DEBERTA = (
    "bf16; fp16 only by autocast over float32 weights (its scores overflow in pure fp16)"
)
_RTD = "replaced-token detection"
_MLM = "masked language model"
_CHAT = "language model, instruction tuned"
_REWARD = "language model, then a reward model of human preferences"
_BF16_ONLY = "bf16 only: its activations overflow in fp16"


def _judge(
    name: str,
    hub_id: str | None,
    licence: str,
    kaggle_model: str | None = None,
    *,
    pretraining: str = _CHAT,
    gated: bool = False,
    precision: str = "fp16 and bf16",
) -> Backbone:
    """Return the record of a decoder."""
    facts = JudgeFacts(gated, kaggle_model)
    return Backbone(name, hub_id, "last", pretraining, licence, precision, judge=facts)


_RECORDS = (
    Backbone("deberta", "microsoft/deberta-v3-xsmall", "mean", _RTD, "MIT", _FP16_DEBERTA),
    Backbone("deberta-base", "microsoft/deberta-v3-base", "mean", _RTD, "MIT", _FP16_DEBERTA),
    Backbone("deberta-large", "microsoft/deberta-v3-large", "mean", _RTD, "MIT", _FP16_DEBERTA),
    Backbone("roberta", "FacebookAI/roberta-base", "mean", _MLM, "MIT"),
    Backbone("roberta-large", "FacebookAI/roberta-large", "mean", _MLM, "MIT"),
    Backbone("electra-small", "google/electra-small-discriminator", "mean", _RTD, "Apache-2.0"),
    Backbone("electra-base", "google/electra-base-discriminator", "mean", _RTD, "Apache-2.0"),
    Backbone("electra", "google/electra-large-discriminator", "mean", _RTD, "Apache-2.0"),
    Backbone(
        "mdeberta",
        "microsoft/mdeberta-v3-base",
        "mean",
        f"{_RTD}, 100 languages",
        "MIT",
        _FP16_DEBERTA,
        multilingual=True,
    ),
    Backbone(
        "xlm-roberta",
        "FacebookAI/xlm-roberta-base",
        "mean",
        f"{_MLM}, 100 languages",
        "MIT",
        multilingual=True,
    ),
    Backbone("modernbert-base", "answerdotai/ModernBERT-base", "mean", _MLM, "Apache-2.0"),
    Backbone("modernbert-large", "answerdotai/ModernBERT-large", "mean", _MLM, "Apache-2.0"),
    Backbone(
        "reward-deberta",
        "OpenAssistant/reward-model-deberta-v3-large-v2",
        "cls",
        f"{_RTD}, then a reward model of human preferences",
        "MIT",
        _FP16_DEBERTA,
    ),
    Backbone("tiny-deberta", None, "mean", "none: random weights", "Apache-2.0", _FP16_DEBERTA),
    Backbone("tiny-roberta", None, "mean", "none: random weights", "Apache-2.0"),
    Backbone("tiny-electra", None, "mean", "none: random weights", "Apache-2.0"),
    _judge(
        "qwen2.5-0.5b",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Apache-2.0",
        "qwen-lm/qwen2.5/transformers/0.5b-instruct/1",
    ),
    _judge(
        "qwen2.5-1.5b",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Apache-2.0",
        "qwen-lm/qwen2.5/transformers/1.5b-instruct/1",
    ),
    _judge(
        "qwen2.5-3b",
        "Qwen/Qwen2.5-3B-Instruct",
        "Qwen Research: not commercial",
        "qwen-lm/qwen2.5/transformers/3b-instruct/1",
    ),
    _judge("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Apache-2.0", "qwen-lm/qwen-3/transformers/0.6b/1"),
    _judge("qwen3-1.7b", "Qwen/Qwen3-1.7B", "Apache-2.0", "qwen-lm/qwen-3/transformers/1.7b/1"),
    _judge("qwen3-4b", "Qwen/Qwen3-4B", "Apache-2.0", "qwen-lm/qwen-3/transformers/4b/1"),
    _judge(
        "skywork-0.6b", "Skywork/Skywork-Reward-V2-Qwen3-0.6B", "Apache-2.0", pretraining=_REWARD
    ),
    _judge(
        "skywork-1.7b", "Skywork/Skywork-Reward-V2-Qwen3-1.7B", "Apache-2.0", pretraining=_REWARD
    ),
    _judge(
        "llama-3.2-1b",
        "meta-llama/Llama-3.2-1B-Instruct",
        "Llama 3.2 Community",
        "metaresearch/llama-3.2/transformers/1b-instruct/1",
        gated=True,
    ),
    _judge(
        "llama-3.2-3b",
        "meta-llama/Llama-3.2-3B-Instruct",
        "Llama 3.2 Community",
        "metaresearch/llama-3.2/transformers/3b-instruct/1",
        gated=True,
    ),
    _judge("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0"),
    _judge("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "Apache-2.0"),
    _judge("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "Apache-2.0"),
    _judge(
        "gemma-2-2b",
        "google/gemma-2-2b-it",
        "Gemma terms",
        "google/gemma-2/transformers/gemma-2-2b-it/2",
        gated=True,
    ),
    _judge(
        "gemma-2-9b",
        "google/gemma-2-9b-it",
        "Gemma terms",
        "google/gemma-2/transformers/gemma-2-9b-it/2",
        gated=True,
    ),
    _judge(
        "gemma-3-270m",
        "google/gemma-3-270m-it",
        "Gemma terms",
        "google/gemma-3/transformers/gemma-3-270m-it/1",
        gated=True,
        precision=_BF16_ONLY,
    ),
    _judge(
        "gemma-3-1b",
        "google/gemma-3-1b-it",
        "Gemma terms",
        "google/gemma-3/transformers/gemma-3-1b-it/1",
        gated=True,
        precision=_BF16_ONLY,
    ),
    _judge("phi-3-mini", "microsoft/Phi-3-mini-4k-instruct", "MIT"),
    _judge("tiny-llama", None, "Apache-2.0", pretraining="none: random weights"),
    _judge("tiny-qwen", None, "Apache-2.0", pretraining="none: random weights"),
)
BACKBONES: dict[str, Backbone] = {record.name: record for record in _RECORDS}


@dataclass(frozen=True)
class ResolvedBackbone:
    """A backbone by the user's name for it, and where its files are.

    Configuration and digest are read on first use and kept.

    Attributes:
        name: name in the registry, folder or hub id, as the user typed it.
        source: folder in Hugging Face layout, or hub id; None for a toy, which starts from random
            weights.
        record: entry of the registry, None for a folder of the user's own and for other encoders of
            the hub.
    """

    name: str
    source: Path | str | None
    record: Backbone | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration: the shipped one of a registry entry, or the folder's.

        Raises:
            BackboneError: the folder's config.json cannot be used.
        """
        if self.record is not None and not isinstance(self.source, Path):
            return self.record.config
        return self.own_config

    @cached_property
    def own_config(self) -> dict[str, Any]:
        """The configuration in its own files, which its weights belong to.

        Raises:
            BackboneError: its config.json cannot be used.
        """
        from transformers import AutoConfig

        try:
            with skip_dead_hub(self.location), self.readable_location() as location:
                config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        # transformers and huggingface_hub raise exceptions of many unrelated classes.
        except Exception as error:
            if needs_own_code(self.location):
                raise BackboneError(
                    f"{self.source}: it needs code of its own (auto_map in config.json), which kit "
                    "never runs",
                    "Choose a model of a family that transformers knows; `kit backbones` lists "
                    "some.",
                ) from error
            if not isinstance(self.source, Path):
                raise self.loading_error(error) from error
            cause = describe_impostor(self.source / "config.json")
            cause = cause or f"cannot be used: {_first_line(error)}"
            raise BackboneError(f"{self.source}: its config.json {cause}", FOLDER_HINT) from error

        values = config.to_dict()
        if "text_config" in values:
            raise BackboneError(
                f"{self.source}: a multimodal model ({values['model_type']}), and kit reads text "
                "models",
                "Choose the family's model for text alone, such as gemma-3-1b of Gemma 3.",
            )

        # The folder's path on this machine is no part of a model.
        values.pop("_name_or_path", None)
        return values

    @property
    def location(self) -> Path | str:
        """The folder or hub id to load from.

        Raises:
            BackboneError: a toy, which has no files before a training.
        """
        if self.source is None:
            raise BackboneError(
                f"{self.name} starts from random weights: it has no files to load",
                "Choose another backbone.",
            )
        return self.source

    @contextlib.contextmanager
    def readable_location(self) -> Generator[Path | str]:
        """Yield the folder or hub id to load from, without byte order marks.

        Editors put them before JSON and vocabularies, and transformers does not read over them.
        The folder stays as it is: a temporary one links to its files.
        """
        source = self.location
        marked = _marked_files(source) if isinstance(source, Path) else []
        if not marked:
            yield source
            return

        with tempfile.TemporaryDirectory(prefix="kit-") as name:
            for path in Path(source).iterdir():
                copy = Path(name) / path.name
                if path in marked:
                    copy.write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
                else:
                    copy.symlink_to(path.resolve())
            yield Path(name)

    @property
    def family(self) -> Family:
        """What is known of its family of architectures."""
        return find_family(self.config["model_type"])

    @property
    def is_decoder(self) -> bool:
        """Whether it is a language model, which a judge reads with."""
        return is_language_model(self.config)

    @property
    def max_positions(self) -> int | None:
        """The hard limit on tokens of a sequence, None where there is none."""
        return max_positions(self.config)

    @property
    def default_pooling(self) -> str:
        """What `model.pooling = "auto"` means for it."""
        return self.record.pooling if self.record else "mean"

    @cached_property
    def digest(self) -> str | None:
        """A hash of the folder's configuration, tokenizer and weights; None without a folder.

        A folder may be changed under the same path, which a recipe would not show. All weights are
        read for it.
        """
        folder = self.source
        if not isinstance(folder, Path):
            return None
        weights = next((name for name in WEIGHTS if (folder / name).is_file()), "")
        suffixes = {".json", ".txt", ".model", Path(weights.removesuffix(".index.json")).suffix}
        paths = [p for p in sorted(folder.iterdir()) if p.suffix in suffixes and p.is_file()]
        content = "".join(f"{path.name} {file_sha256(path)}\n" for path in paths)
        return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()

    def require_files(self) -> None:
        """Raise BackboneError, within seconds, where its files are neither here nor on a hub."""
        source = self.source
        if not isinstance(source, str) or is_in_hub_cache(source):
            return
        if not hub_is_reachable(source):
            raise self.loading_error(ConnectionError())

    def loading_error(self, error: Exception) -> BackboneError:
        """Return the error to raise when it cannot be loaded, with a hint how to get its files."""
        cause = _first_line(error)
        if any(answer.status_code in (401, 403) for answer in hub_answers(error)):
            return self._gated_error()
        if isinstance(self.source, Path):
            return BackboneError(f"{self.source}: cannot be loaded: {cause}", FOLDER_HINT)
        local = self.record.name if self.record else self.name
        download = f"`hf download {self.source} --local-dir models/{local}`"
        if hub_is_reachable(str(self.source)):
            hint = f"See https://huggingface.co/{self.source}, and try {download}."
        else:
            where = f"no folder {self.name} and " if self.name == self.source else ""
            cause = f"{where}no connection to the Hugging Face hub, from which it is loaded once"
            hint = f"Where there is a network, run {download}; kit finds it there, or in a copy."
        name = self.name if self.name == self.source else f"{self.name} ({self.source})"
        return BackboneError(f"backbone {name}: {cause}", hint)

    def _gated_error(self) -> BackboneError:
        """Return the error to raise where the hub keeps its files from a user without a token."""
        hint = (
            f"Accept its licence at https://huggingface.co/{self.source}, then run `hf auth login` "
            "or set HF_TOKEN."
        )
        judge = self.record.judge if self.record else None
        if judge and judge.kaggle_model:
            hint += f" On Kaggle mount it with --model {judge.kaggle_model}."
        return BackboneError(
            f"backbone {self.name} ({self.source}): the Hugging Face hub gives it to those alone "
            "who have accepted its licence",
            hint,
        )


def find_record(name: str) -> Backbone | None:
    """Return the entry of the registry with this short name, full name or hub id, None without."""
    if is_hub_id(name):
        return next((record for record in _RECORDS if record.hub_id == name), None)
    return BACKBONES.get(SHORT_NAMES.get(name, name))


def resolve_backbone(name: str) -> ResolvedBackbone:
    """Find a backbone by its name in the registry, a folder in Hugging Face layout, or its hub id.

    What was downloaded to `models/<name>` is used from there.

    Raises:
        BackboneError: there is none of these; the message lists the names.
    """
    record = find_record(name)
    folder = Path(name)
    if not record and (folder / "config.json").is_file():
        return local_backbone(folder)
    if record or is_hub_id(name):
        local = Path("models") / (record.name if record else name)
        source = local if (local / "config.json").is_file() else record.hub_id if record else name
        return ResolvedBackbone(name, source, record)

    if folder.is_dir():
        raise _other_format(folder) or BackboneError(
            f"{folder}: no config.json in it", "A backbone folder is in Hugging Face layout."
        )
    if _is_gguf(folder):
        raise _gguf_error(folder)
    raise BackboneError(
        f"no backbone {name!r}",
        f"Registry: {', '.join(record.full_name for record in _RECORDS)}; or name a folder, or an "
        "encoder of the Hugging Face hub as OWNER/NAME.",
    )


def missing_weights(folder: Path) -> BackboneError:
    """Return the error to raise for a backbone folder without weights."""
    return _other_format(folder) or BackboneError(
        f"{folder}: no weights in it (looked for {', '.join(WEIGHTS)})", FOLDER_HINT
    )


def _other_format(folder: Path) -> BackboneError | None:
    """Return the error that says what a folder without config.json or weights holds, if known."""
    adapters = folder / "adapter_config.json"
    if adapters.is_file():
        try:
            base = json.loads(read_text_file(adapters))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError):
            base = "a model that it does not name"
        return BackboneError(
            f"{folder}: it holds peft adapters of {base}, not a model",
            "Merge them into that model first (peft: merge_and_unload, then save_pretrained), or "
            "name the model itself.",
        )
    gguf = next((path for path in sorted(folder.glob("*.gguf")) if _is_gguf(path)), None)
    return _gguf_error(gguf) if gguf else None


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _gguf_error(path: Path) -> BackboneError:
    return BackboneError(
        f"{path}: a GGUF file, which is for llama.cpp",
        "Name the model that it was made from: a registry name or a folder in Hugging Face layout.",
    )


def needs_own_code(source: Path | str) -> bool:
    """Whether a folder's config.json names Python code of its own for the model."""
    try:
        return "auto_map" in json.loads(read_text_file(Path(source) / "config.json"))
    except (OSError, ValueError, TypeError):
        return False


def hub_answers(error: BaseException) -> Iterator[Any]:
    """Yield the answers of the hub that an error goes back to; each has a `status_code`.

    transformers wraps what the hub answered in exceptions of its own.
    """
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if hasattr(response, "status_code"):
            yield response
        cause = cause.__cause__ or cause.__context__


def refuse_fp16_overflow(name: str, config: dict[str, Any], precision: str, device: str) -> None:
    """Refuse a model that overflows in fp16 on a device that would compute it in fp16.

    Args:
        name: of the model, for the message.
        precision: "fp32", "bf16" or "fp16".
        device: for the message, such as "a T4".

    Raises:
        DeviceError: it would overflow; the hint names what would not.
    """
    if precision != "fp16" or not find_family(config["model_type"]).bf16_only:
        return
    others = [
        record.name
        for record in BACKBONES.values()
        if record.judge and record.hub_id and not find_family(record.config["model_type"]).bf16_only
    ]
    raise DeviceError(
        f"{name} ({config['model_type']}) overflows in fp16, and {device} would compute it in fp16",
        f"Choose one of {', '.join(others)}; or a GPU of compute capability 8.0 or later; or set "
        "train.precision=fp32, which takes several times as long.",
    )


def has_backbone(folder: Path, backbone: Backbone | None) -> bool:
    """Whether a folder in Hugging Face layout has the weights of this registry entry.

    Its architecture is compared with the registry's; a trained fold of a run, whose weights are
    fine-tuned, is not taken for a backbone. For None, an encoder that the registry does not have,
    any pretrained weights will do.
    """
    if (folder / "metrics.json").is_file() or not any(
        (folder / name).is_file() for name in WEIGHTS
    ):
        return False
    try:
        config = json.loads(read_text_file(folder / "config.json"))
    except (OSError, ValueError):
        return False
    if not isinstance(config, dict):
        return False

    if backbone is None:
        return True

    # A reward model differs from its encoder in its classification head only.
    def traits(values: dict[str, Any]) -> list[Any]:
        head = any("Classification" in name for name in values.get("architectures") or [])
        keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
        return [*(values.get(key) for key in keys), head]

    return traits(config) == traits(backbone.config)


def local_backbone(folder: Path) -> ResolvedBackbone:
    """Return the backbone in a folder, which is read when its parts are."""
    return ResolvedBackbone(str(folder), folder)


def max_positions(config: dict[str, Any]) -> int | None:
    """Return the hard limit on tokens of a sequence, None where positions are relative."""
    family = find_family(config["model_type"])
    if family.relative_positions and not config.get("position_biased_input", True):
        return None
    positions = config.get("max_position_embeddings")
    if positions and family.positions_after_padding:
        return positions - config.get("pad_token_id", 1) - 1
    return positions


def _marked_files(folder: Path) -> list[Path]:
    """Return the text files of a folder that begin with a byte order mark."""
    marked = []
    for path in folder.glob("*"):
        # A file that cannot be read is reported by whoever needs it.
        with contextlib.suppress(OSError):
            if path.suffix in (".json", ".txt"):
                with path.open("rb") as file:
                    if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                        marked.append(path)
    return marked


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
