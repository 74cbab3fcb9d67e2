"""Describe a notebook job for Kaggle. Use `train_job`, `train_jobs`, `baseline_job`, `infer_job`.

A `Job` has a title, the settings that its session reads, a GPU, a time budget and the sources that
Kaggle mounts. `kit.kaggle.notebook` makes a notebook of it, `kit.kaggle.push` pushes that.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kit.baselines.models import baseline_run_name
from kit.data.options import PreprocessOptions
from kit.ensembling.blend import Blend, blend_content
from kit.ensembling.calibration import Calibration, calibration_content
from kit.errors import KitError
from kit.kaggle.kernel_ref import shorten_to_slug
from kit.model.backbones import refuse_fp16_overflow, resolve_backbone
from kit.model.registry import find_record
from kit.recipe.load import is_hub_id
from kit.recipe.spec import Recipe
from kit.task import COMPETITION, HOLDOUT

GPUS = {"t4": "NvidiaTeslaT4", "none": ""}  # a T4 session has two of them
SESSION_HOURS = 12.0  # Kaggle's limit for one run of a notebook
SCORING_HOURS = 9.0  # this competition's limit for a submission

# The defaults of `kit preprocess` whose options a training job carries: those that concern extra
# training files are not among them.
PREPROCESS_DEFAULTS = {
    name: value
    for name, value in asdict(PreprocessOptions()).items()
    if name != "allow_test_prompts"
}


@dataclass(frozen=True)
class Source:
    """A "kernel", "dataset" or "model" that Kaggle mounts, with runs or an encoder in it.

    `ref` is owner/slug, of a model owner/model/framework/variation. `runs` are the names of the
    runs in it, and `versions` the versions that the user meant or that was published; both are
    empty where they are not known.
    """

    ref: str
    weight: float = 1.0
    kind: str = "kernel"
    runs: tuple[str, ...] = ()
    versions: tuple[int, ...] = ()

    @property
    def address(self) -> str:
        """What the push names: of a kernel Kaggle mounts the latest version, whatever is asked."""
        if self.kind == "kernel" or not self.versions:
            return self.ref
        return f"{self.ref}/{self.versions[-1]}"


@dataclass(frozen=True)
class Job:
    """One notebook to push: `settings` is what its session reads, the sources are mounted."""

    kind: str  # "train" or "infer"
    title: str
    settings: Mapping[str, Any]
    gpu: str = "t4"
    internet: bool = False
    max_hours: float = SCORING_HOURS
    competition: str = COMPETITION
    kernel_sources: tuple[str, ...] = ()
    dataset_sources: tuple[str, ...] = ()
    model_sources: tuple[str, ...] = ()
    docker_image: str = ""  # "" for the latest image of Kaggle

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 -]{3,48}[A-Za-z0-9]", self.title):
            raise KitError(
                f"{self.title[:60]!r} cannot be the title of a kernel",
                "Use 5 to 50 letters, digits, spaces and hyphens; its address is made from them.",
            )
        if not 0 < self.max_hours <= SESSION_HOURS:
            raise KitError(
                f"--max-hours {self.max_hours:g} is out of range",
                f"Choose more than 0 and at most {SESSION_HOURS:g} hours, Kaggle's limit.",
            )
        if self.docker_image and not re.fullmatch(
            r"[\w.-]+(/[\w.-]+)+[:@][\w.:-]+", self.docker_image
        ):
            raise KitError(
                f"{self.docker_image[:80]!r} is not the address of an image",
                "Copy it from the line `kit | image …` of a run's log:"
                " gcr.io/kaggle-images/python@sha256:….",
            )

    @property
    def slug(self) -> str:
        """The slug that Kaggle derives from the title, so that id and title always agree."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def session_settings(self) -> dict[str, Any]:
        """Return what the notebook's session reads, without the token of the push."""
        return {
            **self.settings,
            "gpu": self.gpu,
            "max_hours": self.max_hours,
            "competition": self.competition,
        }

    def metadata(self, owner: str) -> dict[str, Any]:
        """Return the content of kernel-metadata.json.

        Every key is written, since Kaggle's client fills missing ones with defaults, such as
        internet on.
        """
        shape = GPUS[self.gpu]
        return {
            "id": f"{owner}/{self.slug}",
            "title": self.title,
            "code_file": f"{self.slug}.ipynb",
            "language": "python",
            "kernel_type": "notebook",
            "is_private": True,
            "enable_gpu": bool(shape),
            "enable_tpu": False,
            "enable_internet": self.internet,
            **({"machine_shape": shape} if shape else {}),
            # A pinned image stays; otherwise each run gets Kaggle's latest.
            **({"docker_image": self.docker_image} if self.docker_image else {}),
            "docker_image_pinning_type": "original" if self.docker_image else "latest",
            "competition_sources": [self.competition],
            "kernel_sources": list(self.kernel_sources),
            "dataset_sources": list(self.dataset_sources),
            "model_sources": list(self.model_sources),
            "keywords": [],
        }


def choose_gpu(name: str, accept_t4: bool = False) -> tuple[str, str]:
    """Return the GPU to ask Kaggle for, and a remark for the user about it ("" if none).

    Raises:
        KitError: the name is unknown, or it is the retired P100 and `accept_t4` is false.
    """
    if name == "p100" and not accept_t4:
        raise KitError(
            "Kaggle has retired the P100 and gives two T4 instead (its torch has no kernels for"
            " a P100)",
            "Use --gpu t4, or add --yes to accept the T4.",
        )
    if name == "p100":
        return "t4", "Kaggle has retired the P100; asking for the two T4 that it gives instead."
    if name not in GPUS:
        raise KitError(f"unknown GPU {name[:20]!r}", f"Choose from {', '.join(GPUS)}.")
    return name, ""


def train_job(
    recipe: Recipe,
    *,
    fold: str = "all",
    gpu: str = "t4",
    max_hours: float = SCORING_HOURS,
    restarts: int = 0,
    preprocess: Mapping[str, Any] | None = None,
    weights: Sequence[Source] = (),
    title: str = "",
    competition: str = COMPETITION,
    docker_image: str = "",
) -> Job:
    """Return the job that trains a recipe.

    Inference mounts the latest version of a kernel. So the default title has the recipe's hash, the
    fold and a mark of the rows: only a job that is the same in all of them shares a kernel.

    Args:
        restarts: how often to try a training again that collapses.
        preprocess: options of `kit preprocess` by name, such as {"text": "ascii", "folds": 5}.
        weights: datasets and models to take the backbone's weights from instead of the hub; by
            default those of `default_weights`.

    Raises:
        KitError: the backbone is unknown, a local folder, or one that overflows on this GPU;
            there is no such fold, or the title or the time is out of range.
    """
    # Looking it up here finds a misspelt name before a push and a GPU session are spent on it.
    is_path = any(character in recipe.backbone for character in "/\\.~")
    if is_path and not is_hub_id(recipe.backbone) and not find_record(recipe.backbone):
        raise KitError(
            f"the backbone {recipe.backbone!r} is a folder on this machine, which Kaggle does not"
            " have",
            "Name one from `kit backbones` or of the Hugging Face hub; the kernel downloads it.",
        )
    record = resolve_backbone(recipe.backbone).record
    if record and gpu == "t4":
        # A T4 has no bf16, so "auto" is fp16 on it.
        precision = "fp16" if recipe.train.precision == "auto" else recipe.train.precision
        refuse_fp16_overflow(record.name, record.config, precision, "a T4")
    weights = weights or default_weights(recipe.backbone)

    options = dict(preprocess or {})
    _check_fold(fold, options)
    settings = {
        "recipe": recipe.to_toml(),
        "run_name": recipe.run_name,
        "fold": fold,
        "preprocess": options,
    }
    if restarts:
        settings["restarts"] = restarts
    if weights:
        settings["weights"] = [source.ref for source in weights]
    return Job(
        kind="train",
        title=title or _train_title(recipe.name, recipe.hash, fold, options),
        settings=settings,
        gpu=gpu,
        internet=True,
        max_hours=max_hours,
        competition=competition,
        dataset_sources=tuple(s.address for s in weights if s.kind == "dataset"),
        model_sources=tuple(s.address for s in weights if s.kind == "model"),
        docker_image=docker_image,
    )


def baseline_job(
    name: str,
    *,
    fold: str = "all",
    max_hours: float = SCORING_HOURS,
    preprocess: Mapping[str, Any] | None = None,
    title: str = "",
    competition: str = COMPETITION,
    docker_image: str = "",
) -> Job:
    """Return the job that fits a classical model, in minutes, without a GPU and without a network.

    Args:
        name: one of `BASELINES`.
        fold, preprocess, title: as of `train_job`.

    Raises:
        KitError: there is no such model or fold, or the title or the time is out of range.
    """
    options = dict(preprocess or {})
    _check_fold(fold, options)
    run_name = baseline_run_name(name)
    return Job(
        kind="train",
        title=title or _train_title(name, run_name.rpartition("-")[2], fold, options),
        settings={"baseline": name, "run_name": run_name, "fold": fold, "preprocess": options},
        gpu="none",
        max_hours=max_hours,
        competition=competition,
        docker_image=docker_image,
    )


def default_weights(backbone: str) -> list[Source]:
    """Return the Kaggle Model that has a decoder's weights; none where none is known.

    Inference has no network, so that it must be mounted there; training mounts the same.
    """
    record = find_record(backbone)
    if not record or not record.judge or not record.judge.kaggle_model:
        return []
    *parts, version = record.judge.kaggle_model.split("/")
    return [Source("/".join(parts), kind="model", versions=(int(version),))]


def train_jobs(
    recipes: Sequence[Recipe],
    *,
    fold: str = "all",
    preprocess: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Job]:
    """Return one training job for each recipe and fold; the fold "all" stands for every fold.

    Args:
        options: further arguments of `train_job`.

    Raises:
        KitError: two recipes are the same; and as `train_job`.
    """
    if len({recipe.run_name for recipe in recipes}) < len(recipes):
        raise KitError("two of these trainings are the same", "Name each backbone or recipe once.")

    folds = [str(k) for k in range(_fold_count(preprocess or {}))] if fold == "all" else [fold]
    return [
        train_job(recipe, fold=one_fold, preprocess=preprocess, **options)
        for recipe in recipes
        for one_fold in folds
    ]


def _train_title(name: str, digest: str, fold: str, options: Mapping[str, Any]) -> str:
    """Return the default title of a training kernel, within Kaggle's 50 characters.

    Args:
        name, digest: of the recipe or the classical model.
    """
    # The recipe's hash leaves its name out, so a shortened name must still be one of a kind.
    mark = _rows_mark(options)
    name = shorten_to_slug(name, 16 if mark else 20)
    part = f"fold {fold}" if fold.isdecimal() else {"all": "all folds"}.get(fold, fold)
    return " ".join(filter(None, ("kit train", name, digest, mark, part)))


def _check_fold(fold: str, options: Mapping[str, Any]) -> None:
    """Raise KitError unless these options of `kit preprocess` make this fold."""
    folds = _fold_count(options)
    if fold not in ("all", HOLDOUT) and not (fold.isdecimal() and int(fold) < folds):
        raise KitError(
            f"there is no fold {fold[:20]!r}",
            f"Choose 0 to {folds - 1}, all or {HOLDOUT}; --folds sets the number of folds.",
        )


def _fold_count(options: Mapping[str, Any]) -> int:
    """Return the number of folds that these options of `kit preprocess` make."""
    return int(options.get("folds", PREPROCESS_DEFAULTS["folds"]))


def _rows_mark(options: Mapping[str, Any]) -> str:
    """Return four hex digits for options of `kit preprocess` that are not the defaults, else ""."""
    changed = {
        name: value for name, value in options.items() if value != PREPROCESS_DEFAULTS.get(name)
    }
    if not changed:
        return ""
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:4]


def infer_job(
    sources: Sequence[Source],
    *,
    method: str = "mean",
    blend: Blend | None = None,
    calibration: Calibration | None = None,
    gpu: str = "t4",
    max_hours: float = SCORING_HOURS - 0.5,
    title: str = "kit infer",
    competition: str = COMPETITION,
    docker_image: str = "",
    local_score: str = "",
    weights: Sequence[Source] = (),
) -> Job:
    """Return the job that predicts with the runs of these sources.

    Args:
        weights: datasets and models with the weights below runs of adapters.
        method: "mean" or "geometric" for equal members, or "weights" for the sources' weights.
        blend: a fitted blend, used instead of `method`; `match_sources` finds its sources.
        calibration: applied to the result of `method`; a blend has its own.
        local_score: what the blend scored locally, for the ledger.

    Raises:
        KitError: there is no source, a source is named twice, or the weights are invalid.
    """
    if not sources:
        raise KitError(
            "inference needs runs to predict with",
            "Name training kernels or run directories with --runs.",
        )
    refs = [source.ref for source in sources]
    repeated = sorted({ref for ref in refs if refs.count(ref) > 1})
    if repeated:
        raise KitError(
            f"named more than once: {', '.join(repeated)}",
            "Name each source once; --weights sets how much it counts.",
        )
    shares = [source.weight for source in sources]
    if not all(0 <= share < math.inf for share in shares) or sum(shares) <= 0:
        raise KitError(
            f"invalid weights {shares}", "Use weights of 0 or more, at least one above 0."
        )

    # Known runs travel with the job, so that the notebook can check what Kaggle has mounted.
    members: list[dict[str, Any]] = []
    for source in sources:
        member: dict[str, Any] = {"ref": source.ref, "weight": source.weight}
        if source.runs:
            member |= {"kind": source.kind, "runs": list(source.runs)}
        members.append(member)

    settings: dict[str, Any] = {"sources": members, "method": method, "local_score": local_score}
    if blend:
        settings |= {"method": "blend", "blend": blend_content(blend)}
    if calibration:
        settings |= {"calibration": calibration_content(calibration)}
    return Job(
        kind="infer",
        title=title,
        settings=settings,
        gpu=gpu,
        internet=False,
        max_hours=max_hours,
        competition=competition,
        kernel_sources=tuple(source.ref for source in sources if source.kind == "kernel"),
        dataset_sources=tuple(
            dict.fromkeys(s.address for s in (*sources, *weights) if s.kind == "dataset")
        ),
        model_sources=tuple(dict.fromkeys(s.address for s in weights if s.kind == "model")),
        docker_image=docker_image,
    )


def pin_datasets(job: Job, sources: Sequence[Source]) -> Job:
    """Return the job with the dataset versions that these sources name.

    A kernel without a version would mount the newest, which a later push may have published.
    """
    addresses = {source.ref: source.address for source in sources if source.kind == "dataset"}
    pinned = tuple(addresses.get(ref, ref) for ref in job.dataset_sources)
    return replace(job, dataset_sources=pinned)
