"""Check that the commands of docs/kaggle.md print what the page shows, against the fake Kaggle."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import snippets
from captured import Heard
from click.testing import CliRunner
from fake_kaggle import FakeKaggle
from training_output import with_output_list

from kit.cli.main import main
from kit.data.dataset import open_dataset
from kit.data.preprocess import preprocess_files
from kit.kaggle.ledger import read_ledger
from kit.kaggle.retry import RetryPolicy
from kit.predictions import make_predictions
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.sample.generate import write_sample
from kit.task import ID, LABEL

PAGE = snippets.ROOT / "docs/kaggle.md"


@pytest.fixture
def fake() -> Iterator[FakeKaggle]:
    """A Kaggle on which a training kernel leaves all folds of its run."""
    with FakeKaggle(owner="ada") as server:
        real_save = server.save_kernel
        inference_files = dict(server.kernel_files)

        def save(body: dict) -> dict:
            title = body["newTitle"]
            if title.startswith("kit train"):
                recipe = load_recipe(title.split()[2])
                server.kernel_files = trained(recipe, Path("data/processed"))
            else:
                server.kernel_files = inference_files
            return real_save(body)

        server.save_kernel = save
        yield server


def trained(recipe: Recipe, data: Path) -> dict[str, bytes]:
    """Return the files of a run with all folds, its predictions better than the class prior."""
    processed = open_dataset(data)
    rows = processed.train([ID, LABEL])

    # Random rows, moved towards the labels; the seed differs by recipe.
    noise = np.random.default_rng(ord(recipe.name[0])).dirichlet([1, 1, 1], len(rows))
    probabilities = 0.6 * noise + 0.4 * (0.6 * np.eye(3)[rows[LABEL].to_numpy()] + 0.4 / 3)
    run = f"runs/{recipe.run_name}"
    origin = {"data": processed.digest("train"), "folds": processed.folds, "text": "unicode"}
    files = {
        f"{run}/recipe.toml": recipe.to_toml().encode(),
        f"{run}/origin.json": json.dumps(origin).encode(),
    }

    for fold in range(processed.folds):
        places = processed.fold_rows(fold)[1]
        made = make_predictions(rows[ID].to_numpy()[places], probabilities[places])
        files[f"{run}/fold{fold}/valid.csv"] = made.to_csv(index=False).encode()
        metrics = {"log_loss": 1.0, "accuracy": 0.5, "valid_rows": len(places)}
        files[f"{run}/fold{fold}/metrics.json"] = json.dumps(metrics).encode()
    return with_output_list(files)


def test_the_walk_through_prints_what_the_page_shows(
    fake: FakeKaggle,
    home: Path,
    heard: Heard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_sample(Path("data/raw"), rows=700)
    preprocess_files(Path("data/raw"), Path("data/processed"))
    for where in ("kit.kaggle.retry", "kit.doctor"):
        monkeypatch.setattr(
            f"{where}.RetryPolicy", functools.partial(RetryPolicy, sleep=heard.pauses.append)
        )

    def kit(words: list[str]) -> tuple[int, str]:
        result = CliRunner().invoke(main, words)
        return result.exit_code, result.output

    with fake.patched(home):
        outcomes = snippets.run(PAGE, kit)
    assert len(outcomes) > 8

    if request.config.getoption("--update"):
        snippets.rewrite(PAGE, outcomes)
    else:
        assert [outcome.problem for outcome in outcomes if outcome.problem] == []

    (entry,) = read_ledger("submissions/ledger.csv")
    assert len(entry.runs.split()) == 2
    assert sum(map(float, entry.weights.split())) == pytest.approx(1)
