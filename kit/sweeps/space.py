"""Read which recipe keys a sweep varies, and over which values. Use `parse_keys` and `SweptKey`.

A key has a range, `train.lr=1e-5..1e-4:log` or `encode.max_tokens=128..512:64`, or choices,
`model.head=symmetric,fusion`. Both are checked against the key's declaration in the recipe.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from kit.errors import RecipeError
from kit.recipe.keys import RecipeKey
from kit.recipe.load import check_value, name_nearest_key, parse_override
from kit.recipe.spec import KEYS

if TYPE_CHECKING:
    import optuna

_RANGE = re.compile(r"([^:]*?)\.\.([^:]*)(?::(.*))?", re.DOTALL)

_EXAMPLES = "For example: --key train.lr=1e-5..1e-4:log, or --key model.head=symmetric,fusion"

# A value of a range without steps is rounded to this share of the range, and on a logarithmic
# range of an order of magnitude or more to three digits, so that the value of a run can be typed.
RESOLUTION = 1 / 1000

Point = Mapping[str, Any]


@dataclass(frozen=True)
class SweptKey:
    """A recipe key and the values that a sweep tries.

    Attributes:
        name: with its section, such as "train.lr".
        choices: the values, if they are listed.
        low, high: the ends of a range, both of which may be tried; of whole numbers if `whole`.
        step: the distance between the values of a range; None for any value in between.
        log: each order of magnitude is as likely as the next.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def text(self) -> str:
        """The key as `--key` takes it, written in one way only."""
        if self.choices:
            return f"{self.name}={','.join(map(value_text, self.choices))}"
        if self.log:
            how = ":log"
        else:
            every = self.step is None or (self.whole and self.step == 1)
            how = "" if every else f":{value_text(self.step)}"
        return f"{self.name}={value_text(self.low)}..{value_text(self.high)}{how}"

    @property
    def size(self) -> float:
        """How many values there are; infinite for a range without steps."""
        if self.choices:
            return len(self.choices)
        return math.inf if self.step is None else 1 + round((self.high - self.low) / self.step)

    def values(self) -> Iterator[Any]:
        """Yield every value of a key whose `size` is finite."""
        if self.choices:
            yield from self.choices
        elif self.step is not None:
            yield from (self.settle(self.low + n * self.step) for n in range(int(self.size)))

    def settle(self, value: Any) -> Any:
        """Return the value that is tried for one that was drawn: rounded, and within the range."""
        if self.choices:
            return value
        if self.whole:
            return int(value)
        resolution = (self.high - self.low) * RESOLUTION if self.step is None else self.step / 1000
        places = math.ceil(-math.log10(resolution))
        if self.log and self.high >= 10 * self.low:
            places = 2 - math.floor(math.log10(value))
        return min(max(round(float(value), places), self.low), self.high)

    def at(self, share: float) -> Any:
        """Return the value at a share of the range, from 0 to below 1."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        if self.log and self.whole:
            # A whole number is as likely as the interval around it.
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            value = round(math.exp(low + share * (high - low)))
            return int(min(max(value, self.low), self.high))
        if self.step is not None:
            return self.settle(self.low + int(share * self.size) * self.step)
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            drawn = math.exp(low + share * (high - low))
            return self.settle(min(max(drawn, self.low), self.high))
        return self.settle(self.low + share * (self.high - self.low))

    def draw(self, trial: "optuna.trial.Trial") -> Any:
        """Return the value that Optuna proposes for a trial; the same again for the same trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            low, high = int(self.low), int(self.high)
            step = 1 if self.log or self.step is None else int(self.step)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        return self.settle(
            trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        )


def parse_keys(texts: Iterable[str], overrides: Iterable[str] = ()) -> tuple[SweptKey, ...]:
    """Return the keys of `--key` options, by name.

    Args:
        overrides: those of `--set`, which must not fix a key that is to vary.

    Raises:
        RecipeError: a key, range or choice is not allowed, or a key is named twice.
    """
    keys: dict[str, SweptKey] = {}
    for text in texts:
        key = parse_key(text)
        if key.name in keys:
            raise RecipeError(f"--key {key.name} is given twice", "Join its values in one --key.")
        keys[key.name] = key

    fixed = {text.partition("=")[0].strip() for text in overrides}
    for name in sorted(fixed & keys.keys()):
        raise RecipeError(f"{name} is in --set and in --key", "Leave one of them out.")
    return tuple(keys[name] for name in sorted(keys))


def parse_key(text: str) -> SweptKey:
    """Return the key of one `--key` option.

    Raises:
        RecipeError: there is no such key, or it does not allow these values.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not name or not values:
        raise RecipeError(f"--key {text!r} is not KEY=LOW..HIGH or KEY=VALUE,VALUE", _EXAMPLES)
    if name not in KEYS:
        raise RecipeError(f"--key {text!r}: unknown key {name}", name_nearest_key(name))
    key = KEYS[name]
    if name == "train.seed":
        raise RecipeError(
            f"--key {text!r}: seeds are not searched",
            "--seeds N trains each point with N of them.",
        )
    if key.kind is str:
        raise RecipeError(f"--key {text!r}: {name} cannot be searched", "Use --set.")

    match = _RANGE.fullmatch(values)
    return _parse_range(key, text, *match.groups()) if match else _parse_choices(key, text, values)


def value_text(value: Any) -> str:
    """Return a value as `--set` takes it, with all its digits."""
    return json.dumps(value).strip('"')


def as_overrides(point: Point) -> list[str]:
    """Return the values of a point as `--set` takes them, which the run's name depends on."""
    return [f"{name}={json.dumps(value)}" for name, value in point.items()]


def describe_point(point: Point) -> str:
    """Return a point in one line, such as "lr=3.2e-05 head=fusion"."""
    return " ".join(f"{n.rpartition('.')[2]}={value_text(v)}" for n, v in point.items())


def space_size(keys: Sequence[SweptKey]) -> float:
    """Return how many points there are; infinite if a key has a range without steps."""
    return math.prod(key.size for key in keys)


def grid_points(keys: Sequence[SweptKey]) -> Iterator[dict[str, Any]]:
    """Yield every point of a finite space, in a fixed order."""
    for values in itertools.product(*(tuple(key.values()) for key in keys)):
        yield dict(zip((key.name for key in keys), values, strict=True))


def spread_points(keys: Sequence[SweptKey], count: int, seed: int) -> list[dict[str, Any]]:
    """Return up to `count` different points that fill the space evenly, by a Sobol sequence.

    More points begin with the same ones. Of a space with no more than `count` points, all are
    returned.
    """
    if space_size(keys) <= count:
        return list(grid_points(keys))
    from scipy.stats.qmc import Sobol

    # Drawn several times where points come again, as in a space of few values. The balance of the
    # sequence holds for powers of two.
    sequence = Sobol(len(keys), seed=seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(8):
        for shares in sequence.random(2 ** math.ceil(math.log2(max(count, 2)))).tolist():
            point = {key.name: key.at(share) for key, share in zip(keys, shares, strict=True)}
            found.setdefault(json.dumps(point), point)
        if len(found) >= count:
            break
    return list(found.values())[:count]


def _parse_range(
    key: RecipeKey, text: str, low_text: str, high_text: str, how: str | None
) -> SweptKey:
    """Return a key with a range of numbers."""
    if key.kind not in (int, float):
        raise RecipeError(
            f"--key {text!r}: {key.name} has no range", f"Choices: {','.join(key.choices)}"
        )
    low = _read_value(key, text, low_text)
    high = _read_value(key, text, high_text)
    whole = key.kind is int
    if low >= high:
        raise RecipeError(
            f"--key {text!r}: {value_text(low)} is not below {value_text(high)}", _EXAMPLES
        )

    if how == "log":
        if low <= 0:
            raise RecipeError(
                f"--key {text!r}: a logarithmic range begins above 0",
                "Choose a higher lower end, or leave out :log.",
            )
        return SweptKey(key.name, (), low, high, 1 if whole else None, True, whole)
    if how is None:
        return SweptKey(key.name, (), low, high, 1 if whole else None, False, whole)

    try:
        step = int(how) if whole else float(how)
    except ValueError:
        step = 0
    if not 0 < step <= high - low:
        kind = "a whole number" if whole else "a number"
        raise RecipeError(
            f"--key {text!r}: {how!r} is neither `log` nor a step within the range",
            f"A step is {kind}: --key {key.name}={low_text}..{high_text}:"
            f"{value_text((high - low) // 2 or 1) if whole else f'{(high - low) / 4:g}'}",
        )

    # The last step may end below the upper end. In binary, 0.3 is less than three steps of 0.1, and
    # a lower end of 1e-28 is lost in every sum.
    start, end, each = (Decimal(str(number)) for number in (low, high, step))
    steps = ((end - start) / each + Decimal("1e-9")) // 1
    last = min(start + steps * each, end)
    return SweptKey(key.name, (), low, int(last) if whole else float(last), step, False, whole)


def _parse_choices(key: RecipeKey, text: str, values: str) -> SweptKey:
    """Return a key with a list of values."""
    choices = tuple(_read_value(key, text, part.strip()) for part in values.split(","))
    if len(choices) == 1:
        raise RecipeError(
            f"--key {text!r} has one value", "Add others behind commas, or use --set for it."
        )
    if len(set(choices)) < len(choices):
        raise RecipeError(f"--key {text!r} names a value twice", "Name each once.")
    return SweptKey(key.name, choices)


def _read_value(key: RecipeKey, text: str, value: str) -> Any:
    """Return a value that the key allows, in the key's type."""
    source = f"--key {text!r}"
    if not value.strip():
        raise RecipeError(f"{source}: a value is missing", _EXAMPLES)
    section, _, name = key.name.partition(".")
    read = parse_override(f"{key.name}={value}", "--key")[section][name]
    return check_value(read, source, key.name)
