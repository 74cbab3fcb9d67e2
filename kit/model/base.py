"""Refer to the pretrained weights below a run. Use `refer_to_base`, `find_base`.

A run of adapters, or of trees that read an encoder's similarities, holds megabytes; the weights
below it stay where they are, and are found again by their name and proved by their hash.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.errors import BackboneError
from kit.model.backbones import WEIGHTS, ResolvedBackbone
from kit.model.hub import skip_dead_hub
from kit.model.registry import BACKBONES
from kit.recipe.load import is_hub_id
from kit.storage.atomic import file_sha256, read_text_file


@dataclasses.dataclass(frozen=True)
class BaseReference:
    """The pretrained weights below a run.

    Attributes:
        name: registry name, or the name of the folder.
        source: hub id, or the folder at the time of the training.
        revision: commit on the hub, None for a folder.
        size: bytes of the weights.
        digest: a hash of the weights.
    """

    name: str
    source: str
    revision: str | None
    size: int
    digest: str


def fetch_backbone(backbone: ResolvedBackbone) -> ResolvedBackbone:
    """Return the backbone as a folder on this machine, downloaded from the hub if need be.

    Raises:
        BackboneError: the hub does not have it, does not answer, or wants a licence accepted.
    """
    if isinstance(backbone.source, Path):
        return backbone
    from huggingface_hub import snapshot_download

    from kit.model.encoder import retry_busy_hub

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    source = str(backbone.location)
    try:
        with skip_dead_hub(source):
            folder = retry_busy_hub(lambda: snapshot_download(source, allow_patterns=patterns))
    # huggingface_hub and its HTTP library raise exceptions of many unrelated classes.
    except Exception as error:
        raise backbone.loading_error(error) from error
    return ResolvedBackbone(backbone.name, Path(folder), backbone.record)


def refer_to_base(backbone: ResolvedBackbone, folder: Path) -> BaseReference:
    """Return the reference to a backbone whose files are in `folder`."""
    # The hub's cache names a snapshot's folder after its commit.
    revision = folder.name if folder.parent.name == "snapshots" else None
    name = backbone.name
    source = str(backbone.source)
    if backbone.record:
        source = backbone.record.hub_id or source
    elif is_hub_id(name):
        # Its folder may be a link to wherever Kaggle has mounted it.
        source = name
    elif isinstance(backbone.source, Path):
        # Found again from any working directory.
        source = str(backbone.source.absolute())
        name = folder.resolve().name
    return BaseReference(name, source, revision, weights_size(folder), digest_weights(folder))


def run_bases(run: Path) -> list[BaseReference]:
    """Return the references of a run directory's folds, each once; none for whole weights."""
    bases = {}
    for config in sorted(run.glob("*/config.json")):
        # A damaged file is named by the prediction, which reads all of it.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            reference = BaseReference(**json.loads(read_text_file(config))["base"])
            bases[reference.digest] = reference
    return list(bases.values())


def holds_base(folder: Path, reference: BaseReference) -> bool:
    """Whether a folder has the weights of a reference; one of another size is not read."""
    try:
        return weights_size(folder) == reference.size and (
            digest_weights(folder) == reference.digest
        )
    except (BackboneError, OSError):
        return False


def find_base(reference: BaseReference) -> ResolvedBackbone:
    """Return the folder with the weights of the reference.

    It is looked for in models/<name> and models/<digest>, then where it was at the training, then
    on the hub.

    Raises:
        BackboneError: it is not there, or what is there has other weights.
    """
    other = []
    for folder in _candidates(reference):
        if not (folder / "config.json").is_file():
            continue
        if holds_base(folder, reference):
            return ResolvedBackbone(reference.name, folder, BACKBONES.get(reference.name))
        other.append(folder)
    if other:
        raise BackboneError(
            f"{other[0]}: its weights are not those that the run was made with",
            f"Put the base {reference.source} into models/{reference.name}"
            + (f" (revision {reference.revision})." if reference.revision else "."),
        )
    raise BackboneError(
        f"the backbone {reference.name} below this run is not on this machine",
        f"Copy its folder to models/{reference.name} (it was {reference.source}).",
    )


def _candidates(reference: BaseReference) -> Iterator[Path]:
    """Yield the folders that may hold the weights, the nearest first."""
    yield Path("models") / reference.name
    yield Path("models") / reference.digest
    if reference.revision is None:
        yield Path(reference.source)
        if not is_hub_id(reference.source):
            return
    from huggingface_hub import snapshot_download

    from kit.model.encoder import retry_busy_hub

    patterns = ["*.json", "*.safetensors"]
    try:
        with skip_dead_hub(reference.source):
            folder = retry_busy_hub(
                lambda: snapshot_download(
                    reference.source, revision=reference.revision, allow_patterns=patterns
                )
            )
        yield Path(folder)
    # As in `fetch_backbone`.
    except Exception as error:
        record = BACKBONES.get(reference.name)
        backbone = ResolvedBackbone(reference.name, reference.source, record)
        raise backbone.loading_error(error) from error


def digest_weights(folder: Path) -> str:
    """Return a hash of the weights in a folder; its tokenizer is kept with the run.

    Raises:
        BackboneError: there are none.
    """
    content = "\n".join(file_sha256(path) for path in weight_files(folder))
    return hashlib.sha256(content.encode()).hexdigest()


def weights_size(folder: Path) -> int:
    """Return the bytes of the weights in a folder.

    Raises:
        BackboneError: there are none.
    """
    return sum(path.stat().st_size for path in weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights: one, or all shards.

    Raises:
        BackboneError: there are none, or their list is damaged or names one that is missing.
    """
    names = [name for name in WEIGHTS if (folder / name).is_file()]
    if not names:
        raise BackboneError(
            f"{folder}: no weights in it (looked for {', '.join(WEIGHTS)})",
            "Download the folder again.",
        )
    files = [folder / names[0]]
    if files[0].suffix == ".json":
        try:
            index: Any = json.loads(read_text_file(files[0]))
            files = [folder / shard for shard in sorted({*index["weight_map"].values()})]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackboneError(
                f"{files[0]}: no list of weights: {error}", "Download the folder again."
            ) from error
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise BackboneError(
                f"{folder}: {missing[0]}, which its index names, is missing",
                "Download the folder again.",
            )
    return files
