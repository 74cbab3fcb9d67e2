"""Share one run of every baseline between the tests of this room."""

from pathlib import Path

import pytest

from kit.baselines.models import MODELS
from kit.baselines.run import run_baseline


@pytest.fixture(scope="session")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of every baseline: its holdout and all folds."""
    folder = tmp_path_factory.mktemp("runs")
    for name in MODELS:
        run_baseline(name, data, folder, "holdout")
        run_baseline(name, data, folder, "all")
    return folder
