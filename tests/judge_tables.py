"""Generate the tables of docs/judges.md from the registry and the recipes. Use `with_judges`.

Between the page's comments nothing is typed by hand: `pytest tests/test_docs.py --update` writes
the tables again.
"""

import re
from pathlib import Path

from kit.model.encoder import count_parameters
from kit.model.registry import BACKBONES, Backbone
from kit.recipe.load import load_recipe

PAGE = Path(__file__).parent.parent / "docs/judges.md"

_JUDGES = ["name", "model on the hub", "layers", "embeddings", "licence", "remarks", "Kaggle Model"]
_RECIPES = ["name", "tokens of a row", "rank", "orders", "tokens of a pass", "activations"]


def with_judges(text: str) -> str:
    """Return the page's text with both tables as the code has them now."""
    judges = [record for record in BACKBONES.values() if record.judge and record.hub_id]
    for name, columns, rows in (
        ("judges", _JUDGES, map(_judge_row, judges)),
        ("judge-recipes", _RECIPES, map(_recipe_row, judges)),
    ):
        begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
        assert text.count(begin) == 1, f"the page needs the comment {begin.strip()} once"
        lines = [columns, ["---"] * len(columns), *rows]
        table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text = re.sub(pattern, lambda _, new=begin + table + end: new, text, flags=re.DOTALL)
    return text


def _judge_row(record: Backbone) -> list[str]:
    counted = count_parameters(record.config)
    assert record.judge
    remarks = ["gated"] if record.judge.gated else []
    remarks += ["bf16 only"] if record.precision.startswith("bf16 only") else []
    return [
        f"`{record.name}`",
        f"`{record.hub_id}`",
        f"{counted['backbone'] / 1e9:.2f}B",
        f"{counted['embedding'] / 1e9:.2f}B",
        record.licence,
        ", ".join(remarks),
        f"`{record.judge.kaggle_model}`" if record.judge.kaggle_model else "none known",
    ]


def _recipe_row(record: Backbone) -> list[str]:
    recipe = load_recipe(record.name)
    return [
        f"`{record.name}`",
        f"{recipe.encode.max_tokens:,}",
        str(recipe.train.lora_rank),
        "both" if recipe.model.head == "symmetric" else "one",
        f"{recipe.train.micro_tokens:,}",
        "recomputed" if recipe.train.gradient_checkpointing else "kept",
    ]
