"""Share fixtures between the rooms: sample rows, a quick recipe, a toy backbone; no network."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# transformers reads these when it is imported.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="true")

import pytest
from hypothesis import settings
from quick_recipe import QUICK

from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.data.tokenize import PairTokenizer
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.sample.generate import write_sample

# The same examples in every run, so that a change is judged by what it changes. `make soak`, which
# is for finding faults, draws new ones.
settings.register_profile("kit", derandomize="SOAK_MINUTES" not in os.environ)
settings.load_profile("kit")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--update`, which writes outputs and tables on the documentation pages again."""
    parser.addoption(
        "--update",
        action="store_true",
        help="Write the documentation's outputs and tables again where they are outdated.",
    )


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put temporary files of tests and their child processes into a folder that pytest removes."""
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        # Tables are as wide as in a file, whatever starts the tests.
        patch.delenv("COLUMNS", raising=False)
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> None:
    """Keep what exists before a module out of the collections of garbage within it.

    A training collects garbage several times, and each time would look at every object of torch and
    of the tests, which takes longer than the training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small sample in Kaggle's files."""
    folder = tmp_path_factory.mktemp("raw")
    write_sample(folder, rows=240, seed=3)
    return folder


@pytest.fixture(scope="session")
def data(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the preprocessed sample, with three folds."""
    folder = tmp_path_factory.mktemp("data") / "processed"
    preprocess_files(raw, folder, folds=3, valid=0.2)
    return folder


@pytest.fixture(scope="session")
def processed(data: Path) -> Dataset:
    """Return the preprocessed sample, opened."""
    return open_dataset(data)


@pytest.fixture(scope="session")
def quick() -> Recipe:
    """Return a recipe that trains in a second: two epochs of 12 steps, eight checkpoints."""
    return load_recipe("tiny-electra", QUICK)


@pytest.fixture(scope="session")
def fixed_backbone(processed: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a toy backbone with fixed weights and no dropout."""
    import torch

    from kit.model.encoder import build_encoder
    from kit.model.registry import BACKBONES
    from kit.training.setup import tiny_folder

    folder = tmp_path_factory.mktemp("backbones") / "fixed"
    source = tiny_folder(BACKBONES["tiny-roberta"], processed)
    config = BACKBONES["tiny-roberta"].config | {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    torch.manual_seed(0)
    build_encoder(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def judge_base(processed: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny decoder with fixed weights."""
    import torch

    from kit.model.encoder import build_encoder
    from kit.model.registry import BACKBONES
    from kit.training.setup import tiny_folder

    folder = tmp_path_factory.mktemp("decoders") / "tiny-base"
    source = tiny_folder(BACKBONES["tiny-qwen"], processed)
    torch.manual_seed(0)
    build_encoder(BACKBONES["tiny-qwen"].config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


@pytest.fixture
def tiny_judge(judge_base: Path) -> PairTokenizer:
    """Return the tokenizer of the tiny decoder, with the plain frame."""
    from kit.model.backbones import local_backbone
    from kit.model.encoder import load_tokenizer

    return load_tokenizer(local_backbone(judge_base), "plain")
