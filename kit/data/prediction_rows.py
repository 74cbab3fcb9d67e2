"""Hold rows to predict, and what models derive from them. Use `PredictionRows`.

Whatever models share is derived once: tokens and features of a network from the cache on disk, the
inputs of classical models from memory.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from kit.data.dataset import Dataset
from kit.data.feature_cache import FeatureTable, features_cached
from kit.data.tokenize import PairTokenizer, TokenizedRows, tokenize_cached
from kit.recipe.spec import Recipe

T = TypeVar("T")

Progress = Callable[[int, int], None]  # called with the rows done and all rows


@dataclass(frozen=True)
class TimeLimit:
    """The time in which rows may be read in the second order of their answers.

    Attributes:
        deadline: as of `time.monotonic`.
        log: called with how far that came.
    """

    deadline: float
    log: Callable[[str], None]


@dataclass(frozen=True)
class PredictionRows:
    """Rows to predict.

    Attributes:
        table: id, prompt and answers.
        digest: a hash of the table, which names its tokens and features in the cache.
        cache: the folder for tokens and features.
    """

    table: pa.Table
    digest: str
    cache: Path
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_split(cls, dataset: Dataset, split: str) -> "PredictionRows":
        """Return the rows of "train" or "test"."""
        table = dataset.test() if split == "test" else dataset.train()
        return cls(table, dataset.digest(split), dataset.cache)

    def __len__(self) -> int:
        return self.table.num_rows

    def tokens(self, tokenizer: PairTokenizer, recipe: Recipe) -> TokenizedRows:
        """Return the rows as tokens, from the cache if it has them."""
        return tokenize_cached(
            self.table, self.digest, tokenizer, recipe.encode, self.cache, recipe.model.shape
        )

    def features(self, tokens: TokenizedRows) -> FeatureTable:
        """Return the rows' features, from the cache if it has them."""
        return features_cached(self.table, self.digest, tokens, self.cache)

    def derive(self, key: Hashable, make: Callable[[pa.Table], T]) -> T:
        """Return what `make` makes of the table, from memory if it has been made under this key."""
        if key not in self._derived:
            self._derived[key] = make(self.table)
        return self._derived[key]
