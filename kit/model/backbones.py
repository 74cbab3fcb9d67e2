"""Find a backbone by its name, folder or hub id, and read its files. Use `resolve_backbone`.

The module does not import torch: a push to Kaggle checks a backbone's name without it.
"""

import codecs
import contextlib
import hashlib
import json
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kit.attention.families import Family, find_family, is_language_model
from kit.errors import BackboneError, DeviceError
from kit.model.hub import hub_is_reachable, is_in_hub_cache, skip_dead_hub
from kit.model.registry import BACKBONES, Backbone, find_record, max_positions
from kit.recipe.load import is_hub_id
from kit.storage.atomic import file_sha256, read_text_file
from kit.storage.contents import describe_impostor
from kit.wording import first_line, name_nearest

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
            cause = cause or f"cannot be used: {first_line(error)}"
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
        cause = first_line(error)
        if any(answer.status_code in (401, 403) for answer in hub_answers(error)):
            return self._gated_error()
        if isinstance(self.source, Path):
            return BackboneError(f"{self.source}: cannot be loaded: {cause}", FOLDER_HINT)
        local = self.record.name if self.record else self.name
        download = f"`hf download {self.source} --local-dir models/{local}`"
        # OWNER/NAME may have been meant as a folder.
        own_name = self.name == self.source
        here = f"no folder {self.name} here, and " if own_name else ""
        if hub_is_reachable(str(self.source)):
            cause = f"{here}from the Hugging Face hub: {cause}" if here else cause
            hint = f"See https://huggingface.co/{self.source}, and try {download}."
        else:
            cause = f"{here}no connection to the Hugging Face hub, from which it is loaded once"
            hint = f"Where there is a network, run {download}; kit finds it there, or in a copy."
            if here:
                hint = f"For a folder, check the path. For a model of the hub: {hint}"
        if own_name:
            return BackboneError(cause, hint)
        return BackboneError(f"backbone {self.name} ({self.source}): {cause}", hint)

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


def resolve_backbone(name: str) -> ResolvedBackbone:
    """Find a backbone by its name in the registry, a folder in Hugging Face layout, or its hub id.

    What was downloaded to `models/<name>` is used from there.

    Raises:
        BackboneError: there is none of these; the message names what comes near.
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
    names = [each for record in BACKBONES.values() for each in (record.name, record.full_name)]
    where = (
        "`kit backbones` lists all; or name a folder, or an encoder of the Hugging Face hub as "
        "OWNER/NAME."
    )
    raise BackboneError(f"no backbone {name!r}", name_nearest(name, names, where))


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
