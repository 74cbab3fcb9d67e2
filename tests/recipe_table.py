"""Generate the tables of recipe keys in docs/recipes.md from `KEYS`. Use `with_tables`.

The page holds a pair of comments for each section of a recipe, and between them nothing is typed by
hand: `pytest tests/test_docs.py --update` writes the tables again.
"""

import re
from pathlib import Path

from kit.recipe.keys import RecipeKey
from kit.recipe.spec import KEYS

PAGE = Path(__file__).parent.parent / "docs/recipes.md"
HEADER = "| key | default | allowed | meaning | source |\n| --- | --- | --- | --- | --- |\n"


def with_tables(text: str) -> str:
    """Return a page's text with the table of every section as the code has it now."""
    sections: dict[str, list[RecipeKey]] = {}
    for key in KEYS.values():
        sections.setdefault(key.name.partition(".")[0], []).append(key)

    for section, keys in sections.items():
        begin, end = f"<!-- table {section} -->\n", "<!-- end -->"
        assert text.count(begin) == 1, f"the page needs the comment {begin.strip()} once"
        table = HEADER + "".join(_table_row(key) for key in keys)
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text = re.sub(pattern, lambda _, new=begin + table + end: new, text, flags=re.DOTALL)
    return text


def _table_row(key: RecipeKey) -> str:
    allowed = " ".join(f"`{choice}`" for choice in key.choices) or key.allowed
    cells = [f"`{key.name}`", f"`{key.default_text}`", allowed, key.doc, key.source]
    escaped = [cell.replace("|", r"\|") for cell in cells]
    return f"| {' | '.join(escaped)} |\n"
