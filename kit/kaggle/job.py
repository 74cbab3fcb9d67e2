"""What a notebook is to do on Kaggle: a title, settings for its session, a GPU, and the sources that it needs."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kit.ensemble.blend import Blend, blend_content
from kit.ensemble.calibration import Calibration, calibration_content
from kit.errors import KitError
from kit.kaggle.preparing import push_folds, push_mark
from kit.model.backbones import resolve_backbone
from kit.recipe.spec import Recipe
from kit.task import COMPETITION, HOLDOUT

GPUS = {"t4": "NvidiaTeslaT4", "none": ""}  # a T4 session has two of them
SESSION_HOURS = 12.0  # Kaggle's limit for one run of a notebook
SCORING_HOURS = 9.0  # this competition's limit for a submission


@dataclass(frozen=True)
class Source:
    """Something that Kaggle mounts and that holds run directories: owner/slug of a "kernel" or a "dataset".

    `runs` are the names of the runs in it and `versions` the kernel's versions that were meant, as far as known.
    """

    ref: str
    weight: float = 1.0
    kind: str = "kernel"
    runs: tuple[str, ...] = ()
    versions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """One notebook to push. `settings` is what its session reads; the sources are what Kaggle mounts."""

    kind: str  # "train" or "infer"
    title: str
    settings: Mapping[str, Any]
    gpu: str = "t4"
    internet: bool = False
    max_hours: float = SCORING_HOURS
    competition: str = COMPETITION
    kernel_sources: tuple[str, ...] = ()
    dataset_sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 -]{3,48}[A-Za-z0-9]", self.title):
            raise KitError(
                f"{self.title[:60]!r} cannot be a kernel's title",
                "Kaggle makes the slug from it: 5 to 50 letters, digits, blanks and hyphens.",
            )
        if not 0 < self.max_hours <= SESSION_HOURS:
            raise KitError(
                f"--max-hours {self.max_hours:g}: a Kaggle session has at most {SESSION_HOURS:g} hours",
                "",
            )

    @property
    def slug(self) -> str:
        """The slug that Kaggle derives from the title, so that id and title never disagree."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def session(self) -> dict[str, Any]:
        """What the notebook reads, but for the token of the push."""
        return {
            **self.settings,
            "gpu": self.gpu,
            "max_hours": self.max_hours,
            "competition": self.competition,
        }

    def metadata(self, owner: str) -> dict[str, Any]:
        """kernel-metadata.json in full: what is left out, Kaggle's client fills with defaults such as internet on."""
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
            "docker_image_pinning_type": "latest",
            "competition_sources": [self.competition],
            "kernel_sources": list(self.kernel_sources),
            "dataset_sources": list(self.dataset_sources),
            "model_sources": [],
            "keywords": [],
        }


def gpu_name(name: str, yes: bool = False) -> tuple[str, str]:
    """The GPU to ask for, and what to tell the user about it ('' if nothing).

    Raises:
        KitError: an unknown name; or the P100, which Kaggle has retired, without `yes`.
    """
    if name == "p100" and not yes:
        raise KitError(
            "Kaggle has retired the P100 and serves two T4 in its place (its torch has no kernels for a P100)",
            "Say --gpu t4, or add --yes to go on with T4.",
        )
    if name == "p100":
        return (
            "t4",
            "Kaggle has retired the P100; this asks for T4 x2, which it serves in its place.",
        )
    if name not in GPUS:
        raise KitError(
            f"--gpu {name[:20]!r}: Kaggle has no such GPU for this",
            f"Choose from {', '.join(GPUS)}.",
        )
    return name, ""


def train_job(
    recipe: Recipe,
    *,
    fold: str = "all",
    gpu: str = "t4",
    max_hours: float = SCORING_HOURS,
    restarts: int = 0,
    preprocess: Mapping[str, Any] | None = None,
    title: str = "",
    competition: str = COMPETITION,
) -> Job:
    """A training job. Equal recipes, folds and rows share a kernel; others never do: inference mounts the latest.

    Args:
        restarts: how often a training that collapses is tried again.
        preprocess: options of `kit preprocess` by name, such as {"text": "ascii", "folds": 5}.

    Raises:
        KitError: no such backbone, or it is a folder of this machine; no such fold; a bad title or time.
    """
    if any(c in recipe.backbone for c in "/\\.~"):
        raise KitError(
            f"the backbone {recipe.backbone!r} is a folder of this machine, which Kaggle does not have",
            "Name one from `kit backbones`; the kernel downloads it.",
        )
    resolve_backbone(recipe.backbone)  # a name misspelt would cost a push and a GPU session
    preprocess = dict(preprocess or {})
    folds = push_folds(preprocess)
    if fold not in ("all", HOLDOUT) and not (fold.isdecimal() and int(fold) < folds):
        raise KitError(
            f"there is no fold {fold[:20]!r}",
            f"Choose 0 to {folds - 1}, all or {HOLDOUT}; --folds makes other ones.",
        )
    part = f"fold {fold}" if fold.isdecimal() else {"all": "all folds"}.get(fold, fold)
    rows = push_mark(preprocess)
    name = re.sub(r"[^A-Za-z0-9-]+", "-", recipe.name)[: 16 if rows else 20].strip(
        "-"
    )  # a title has 50 characters
    settings = {
        "recipe": recipe.to_toml(),
        "run_name": recipe.run_name,
        "fold": fold,
        "preprocess": preprocess,
    }
    if (
        restarts
    ):  # else the job is what it was before there were any, and a kernel of then is taken up
        settings["restarts"] = restarts
    title = title or " ".join(filter(None, ("kit train", name, recipe.hash, rows, part)))
    return Job("train", title, settings, gpu, True, max_hours, competition)


def train_jobs(
    recipes: Sequence[Recipe],
    *,
    fold: str = "all",
    preprocess: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Job]:
    """A job for each recipe and fold, for many kernels side by side; `fold` "all" is every one of them.

    Raises:
        KitError: two recipes are the same; and as `train_job`, which takes the other options.
    """
    if len({recipe.run_name for recipe in recipes}) < len(recipes):
        raise KitError("two of these trainings are the same", "Name each backbone or recipe once.")
    folds = [str(k) for k in range(push_folds(preprocess or {}))] if fold == "all" else [fold]
    return [
        train_job(recipe, fold=k, preprocess=preprocess, **options)
        for recipe in recipes
        for k in folds
    ]


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
    local_score: str = "",
) -> Job:
    """An inference job over the runs of these sources.

    Args:
        method: "mean" or "geometric", of equal members, or "weights", which takes the sources' own.
        blend: a fitted one instead of these; `matching.match` finds its sources.
        calibration: of what comes out of the method; a blend has one of its own.
        local_score: what the blend scored here; goes with the submission into the ledger.

    Raises:
        KitError: no source, one of them twice, or weights that cannot be used.
    """
    if not sources:
        raise KitError(
            "inference needs runs to predict with",
            "Name training kernels or run directories with --runs.",
        )
    refs = [s.ref for s in sources]
    twice = sorted({r for r in refs if refs.count(r) > 1})
    if twice:
        raise KitError(
            f"{', '.join(twice)} is named more than once",
            "Name each source once; weights say how much.",
        )
    weights = [s.weight for s in sources]
    if not all(0 <= w < math.inf for w in weights) or sum(weights) <= 0:
        raise KitError(
            f"the weights {weights} cannot be used",
            "None may be negative, and one must be above 0.",
        )
    known = ({"kind": s.kind, "runs": list(s.runs)} if s.runs else {} for s in sources)
    members = [
        {"ref": s.ref, "weight": s.weight} | more for s, more in zip(sources, known, strict=True)
    ]
    settings: dict[str, Any] = {"sources": members, "method": method, "local_score": local_score}
    if blend:
        settings |= {"method": "blend", "blend": blend_content(blend)}
    if calibration:
        settings |= {"calibration": calibration_content(calibration)}
    kernels, datasets = (
        tuple(s.ref for s in sources if s.kind == kind) for kind in ("kernel", "dataset")
    )
    return Job("infer", title, settings, gpu, False, max_hours, competition, kernels, datasets)
