"""Fixtures that several files share: rows made once, and a network that nobody may reach."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="true"
)  # before transformers

import pytest
from quick_recipe import QUICK

from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.sample.generate import write_sample


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update`: what the documentation shows is written anew where it is no longer true."""
    parser.addoption(
        "--update", action="store_true", help="Write the documentation's outputs and tables anew."
    )


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests, their children and torchrun leave in the temporary folder goes when pytest's own folders go."""
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded sample in Kaggle's files."""
    folder = tmp_path_factory.mktemp("raw")
    write_sample(folder, rows=240, seed=3)
    return folder


@pytest.fixture(scope="session")
def data(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It preprocessed, in three folds."""
    folder = tmp_path_factory.mktemp("data") / "processed"
    preprocess_files(raw, folder, folds=3, valid=0.2)
    return folder


@pytest.fixture(scope="session")
def processed(data: Path) -> Dataset:
    """It opened."""
    return open_dataset(data)


@pytest.fixture(scope="session")
def quick() -> Recipe:
    """A recipe that trains in a second: 12 steps an epoch, two epochs, eight checkpoints."""
    return load_recipe("tiny-electra", QUICK)


@pytest.fixture(scope="session")
def still(processed: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone folder with fixed weights and no dropout."""
    import torch

    from kit.model.backbones import BACKBONES
    from kit.model.encoder import build_encoder
    from kit.training.setup import tiny_folder

    folder = tmp_path_factory.mktemp("backbones") / "still"
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
