"""Make the output files of kernels, as `FakeKaggle.kernel_files` takes them."""

import hashlib
import json
from collections.abc import Mapping

from kit.kaggle.runtime.session import OUTPUT_LIST
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.task import PREDICTION_COLUMNS

RECIPE = load_recipe("tiny-electra")
METRICS = {
    "0": {"log_loss": 1.0, "accuracy": 0.5, "valid_rows": 10},
    "1": {"log_loss": 0.7, "accuracy": 0.2, "valid_rows": 20},
    "2": {"log_loss": 1.2, "accuracy": 0.6, "valid_rows": 10},
}


def with_output_list(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files, and the list of them that kit's notebooks write."""
    return {**files, OUTPUT_LIST: output_list(files)}


def output_list(files: Mapping[str, bytes]) -> bytes:
    """The list that a notebook of kit writes of these files."""
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    return json.dumps({"push": "a" * 32, "files": entries}).encode()


def training_output(recipe: Recipe, fold: str, data: str = "d1") -> dict[str, bytes]:
    """The output of a training kernel: a run directory with one finished fold, and its list."""
    run = f"runs/{recipe.run_name}"
    first = 100 * int(fold)
    lines = [f"{first + row},0.2,0.3,0.5\n" for row in range(METRICS[fold]["valid_rows"])]
    predictions = ",".join(PREDICTION_COLUMNS) + "\n" + "".join(lines)
    origin = {"data": data, "folds": 3, "text": "unicode"}
    return with_output_list(
        {
            f"{run}/recipe.toml": recipe.to_toml().encode(),
            f"{run}/origin.json": json.dumps(origin).encode(),
            f"{run}/fold{fold}/model.safetensors": f"weights of {fold}".encode(),
            f"{run}/fold{fold}/valid.csv": predictions.encode(),
            f"{run}/fold{fold}/metrics.json": json.dumps(METRICS[fold]).encode(),
            f"{run}/metrics.json": b"{}",
        }
    )
