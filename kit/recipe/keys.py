"""Declare recipe keys: default, allowed values, meaning and source of each, in one place.

Use `key` to declare one as the field of a dataclass, `list_keys` to read them all. Checks, `kit
recipes --keys`, shell completion and the tables of docs/recipes.md come from here.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class RecipeKey:
    """One key of a recipe.

    Attributes:
        name: with its section, such as "train.lr".
        kind: bool, int, float, str, or a Literal of choices.
        between: the lowest and the highest value of a number.
        doc: what it means, in one sentence.
        source: where the default or the method comes from.
        added: the key came when there were runs already: while it has its default, a recipe's hash
            leaves it out, so that those runs keep their names.
    """

    name: str
    kind: Any
    default: Any
    between: tuple[float, float] | None
    doc: str
    source: str
    added: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words; empty for a number."""
        if get_origin(self.kind) is Literal:
            return get_args(self.kind)
        return ("true", "false") if self.kind is bool else ()

    @property
    def allowed(self) -> str:
        """The allowed values in words: "0 to 1", or the choices."""
        if self.between:
            # A whole number is written in full, because `g` would round the largest seed.
            low, high = self.between
            return f"{low} to {high}" if self.kind is int else f"{low:g} to {high:g}"
        return ", ".join(self.choices)

    @property
    def default_text(self) -> str:
        """The default as TOML writes it."""
        return f"{self.default:g}" if isinstance(self.default, float) else json.dumps(self.default)


def key(
    default: Any,
    doc: str,
    *,
    source: str = "kit",
    between: tuple[float, float] | None = None,
    added: bool = False,
) -> Any:
    """Declare a recipe key as a field of a frozen dataclass; `RecipeKey` explains the arguments."""
    metadata = {"doc": doc, "source": source, "between": between, "added": added}
    return field(default=default, metadata=metadata)


def list_keys(recipe: type) -> list[RecipeKey]:
    """Return every key in the sections of a recipe class, in the order of the code."""
    keys = []
    for section, spec in get_type_hints(recipe).items():
        if not dataclasses.is_dataclass(spec):
            continue
        kinds = get_type_hints(spec)
        for attribute in dataclasses.fields(spec):
            name = f"{section}.{attribute.name}"
            kind = kinds[attribute.name]
            keys.append(RecipeKey(name, kind, attribute.default, **attribute.metadata))
    return keys
