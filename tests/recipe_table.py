"""The tables of recipe keys in docs/recipes.md: keys, defaults and ranges from the code, meanings from the page.

`pytest tests/test_docs.py --update` adds rows for new keys, with the words of the dataclass's docstring where it has
some; a meaning or source that is still `…` fails the test.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from kit.recipe.spec import RANGES, Recipe

PAGE = Path(__file__).parent.parent / "docs/recipes.md"
HEAD = "| key | default | allowed | meaning | source |\n| --- | --- | --- | --- | --- |\n"
MISSING = "…"
SECTIONS = {
    name: kind for name, kind in get_type_hints(Recipe).items() if dataclasses.is_dataclass(kind)
}


def with_tables(text: str) -> str:
    """The page with every section's table as it has to be: known keys keep their meanings and sources."""
    for section, spec in SECTIONS.items():
        begin, end = f"<!-- table {section} -->\n", "<!-- end -->"
        if begin not in text:
            text = text.rstrip("\n") + f"\n\n### `[{section}]`\n\n{begin}{end}\n"
        before, rest = text.split(begin)
        table, after = rest.split(end, 1)
        text = before + begin + HEAD + "".join(_rows(section, spec, _words(table))) + end + after
    return text


def unexplained(text: str) -> list[str]:
    """The keys whose meaning or source is still to be written."""
    return [key for key, words in _words(text).items() if not all(words) or MISSING in words]


def _words(table: str) -> dict[str, tuple[str, str]]:
    """Meaning and source by key, of the rows there are."""
    found = {}
    for line in table.splitlines():
        if row := re.fullmatch(r"\| `([\w.]+)` \|(.*)\|", line):
            *_, meaning, source = re.split(r"(?<!\\)\|", row[2])
            found[row[1]] = (meaning.strip(), source.strip())
    return found


def _rows(section: str, spec: type, words: dict[str, tuple[str, str]]) -> list[str]:
    rows = []
    for field in dataclasses.fields(spec):
        key = f"{section}.{field.name}"
        meaning, source = words.get(key, (_from_docstring(spec, field.name), MISSING))
        allowed = _allowed(key, get_type_hints(spec)[field.name])
        rows.append(f"| `{key}` | {_value(field.default)} | {allowed} | {meaning} | {source} |\n")
    return rows


def _value(value: Any) -> str:
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


def _allowed(key: str, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(kind))
    if key in RANGES:
        low, high = RANGES[key]
        return f"{low:g} to {high:g}"
    return {bool: "`true` `false`", str: "text"}.get(kind, MISSING)


def _from_docstring(spec: type, name: str) -> str:
    """The words behind `name:` in the docstring, up to the next key's or the end of the sentence."""
    others = "|".join(field.name for field in dataclasses.fields(spec))
    found = re.search(
        rf"\b{name}: (.+?)(?=;? (?:{others}): |\.? *$|\. )", " ".join((spec.__doc__ or "").split())
    )
    return found[1].rstrip(".;").replace("|", "\\|") if found else MISSING
