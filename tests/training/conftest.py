"""Share a finished training between the tests of this room."""

from pathlib import Path

import pytest

from kit.recipe.spec import Recipe
from kit.run import Run
from kit.training.train import train_recipe


@pytest.fixture(scope="session")
def trained_run(quick: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train the holdout of the quick recipe without interruption."""
    return Run.open(train_recipe(quick, data, tmp_path_factory.mktemp("runs"))["run"])
