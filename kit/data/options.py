"""Hold the options of preprocessing with their defaults and ranges. Use `PreprocessOptions`.

It needs nothing but the standard library, so the command line reads choices and defaults from here
without waiting for numpy and pyarrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kit.errors import KitError

TEXT_FORMS = ("unicode", "ascii")
SPLITS = ("grouped", "stratified")


@dataclass(frozen=True)
class PreprocessOptions:
    """The options that, with the input files, decide the bytes of a processed folder.

    Attributes:
        text: "unicode" or "ascii" (see `kit.data.clean`).
        split: "grouped" or "stratified" (see `kit.data.split`).
        folds: number of cross-validation folds, 2 to 100.
        valid: share of the holdout, above 0 and up to 0.5.
        seed: of the splits.
        allow_test_prompts: keep extra rows whose prompt is in test.csv.

    Raises:
        KitError: a value is out of range.
    """

    text: str = "unicode"
    split: str = "grouped"
    folds: int = 5
    valid: float = 0.1
    seed: int = 0
    allow_test_prompts: bool = False

    def __post_init__(self) -> None:
        check_choice("text", self.text, TEXT_FORMS)
        check_choice("split", self.split, SPLITS)

        if not 2 <= self.folds <= 100:
            raise KitError(f"--folds is {self.folds}", "Choose 2 to 100 folds.")
        if not 0 < self.valid <= 0.5:
            raise KitError(
                f"--valid is {self.valid:g}", "Choose a share above 0 and up to 0.5, such as 0.1."
            )
        if not 0 <= self.seed < 2**32:
            raise KitError(f"--seed is {self.seed}", "Choose a whole number from 0 to 4294967295.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a `KitError` that lists the choices of option `name` unless `value` is one of them."""
    if value not in choices:
        raise KitError(f"--{name} is {value!r}", f"Choose one of {', '.join(choices)}.")
