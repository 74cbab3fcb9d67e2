"""Describe how long rows are in tokens, real ones or like the competition's. Use `RowLengths`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kit.recipe.spec import Recipe

# The competition's training rows, and the hidden rows that a submission predicts.
COMPETITION_ROWS = 57_477
HIDDEN_ROWS = 25_000

# Modelled lengths in characters: median and spread (of the logarithm) of prompts, median of
# answers, spread that both answers share and of each alone. A token has four characters.
PROMPT_MEDIAN, PROMPT_SPREAD = 95, 1.65
ANSWER_MEDIAN, SHARED_SPREAD, ANSWER_SPREAD = 1000, 0.6, 0.55
CHARACTERS_PER_TOKEN = 4

# Rows that are modelled. More would not change their mean.
MODELLED_ROWS = 8192

# Tokens around prompt and answers in one sequence: separators, or the headings of a judge.
CROSS_FRAME = 6
JUDGE_FRAME = 40

# What the modelled lengths are called.
MODELLED = "modelled on the competition's"


@dataclass(frozen=True)
class RowLengths:
    """Lengths of a number of rows.

    Attributes:
        tokens: of the sequences of all rows, or of some that stand for all, (N, S): the two sides
            of a row, or the row in both orders of its answers.
        train_rows: of one fold's training.
        valid_rows: of its validation.
        source: where `tokens` comes from, in words.
    """

    tokens: np.ndarray
    train_rows: int
    valid_rows: int
    source: str = MODELLED

    @property
    def mean_tokens(self) -> float:
        """The mean length of a sequence."""
        return float(self.tokens.mean())

    @property
    def mean_square(self) -> float:
        """The mean of the squared length, which attention's operations grow with."""
        return float(np.square(self.tokens, dtype=np.float64).mean())


def competition_lengths(recipe: Recipe, folds: int = 5) -> RowLengths:
    """Return lengths like those of the competition's rows under a recipe.

    Args:
        folds: of which one is validated on; the holdout is taken for one of them.
    """
    valid = round(COMPETITION_ROWS / folds)
    return RowLengths(model_lengths(MODELLED_ROWS, recipe), COMPETITION_ROWS - valid, valid)


def model_lengths(rows: int, recipe: Recipe, seed: int = 0) -> np.ndarray:
    """Return lengths in tokens of rows like the competition's (N, 2), cut to the recipe's limit."""
    rng = np.random.default_rng(seed)
    prompt = np.exp(rng.normal(np.log(PROMPT_MEDIAN), PROMPT_SPREAD, rows))
    shared = rng.normal(0, SHARED_SPREAD, rows)
    answers = [
        np.exp(np.log(ANSWER_MEDIAN) + shared + rng.normal(0, ANSWER_SPREAD, rows))
        for _ in range(2)
    ]
    return sequence_lengths(prompt, answers, recipe)


def sequence_lengths(
    prompt: np.ndarray, answers: Sequence[np.ndarray], recipe: Recipe
) -> np.ndarray:
    """Return lengths in tokens (N, 2) of the sequences of rows with so many characters (N,)."""
    if recipe.model.shape == "siamese":
        # CLS, and one SEP after each of its segments.
        sides = [(prompt + answer) / CHARACTERS_PER_TOKEN + 3 for answer in answers]
        lengths = np.stack(sides, 1)
    else:
        frame = CROSS_FRAME if recipe.model.shape == "cross" else JUDGE_FRAME
        whole = (prompt + answers[0] + answers[1]) / CHARACTERS_PER_TOKEN + frame
        lengths = np.stack([whole, whole], 1)
    return np.minimum(recipe.encode.max_tokens, lengths).astype(int)
