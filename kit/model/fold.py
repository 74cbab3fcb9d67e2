"""Predict rows with the network of one trained fold. Use `NetworkFold.load`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.data.prediction_rows import PredictionRows, Progress, TimeLimit
from kit.data.tokenize import PairTokenizer
from kit.model.device import (
    Compute,
    choose_device,
    join_processes,
    prepare_device,
)
from kit.model.inference import (
    OrderBudget,
    logits_to_probabilities,
    make_collator,
    predict_logits,
)
from kit.model.pair_model import PairModel
from kit.recipe.spec import Recipe


@dataclass(frozen=True)
class NetworkFold:
    """A fold's network on the best device of this machine.

    Attributes:
        swap: average over both orders of the answers.
    """

    model: PairModel
    tokenizer: PairTokenizer
    compute: Compute
    recipe: Recipe
    swap: bool

    @classmethod
    def load(cls, folder: Path, recipe: Recipe, swap: bool | None = None) -> "NetworkFold":
        """Load the network that `PairModel.save_pretrained` wrote.

        Args:
            folder: the fold's folder.
            recipe: of its run. The precision is the best for this machine, unless the recipe asks
                for float32.
            swap: average over both orders of the answers; by default as the recipe says.

        Raises:
            RunError: the model is missing, damaged or of another version of kit.
        """
        precision = "fp32" if recipe.train.precision == "fp32" else "auto"
        model, tokenizer = PairModel.from_pretrained(folder, precision)
        compute = choose_device(precision, model.bf16_width)
        prepare_device(compute)
        model.to(compute.device)
        return cls(model, tokenizer, compute, recipe, recipe.predict.swap if swap is None else swap)

    def predict(
        self,
        source: PredictionRows,
        rows: np.ndarray,
        progress: Progress,
        limit: TimeLimit | None = None,
    ) -> np.ndarray:
        """Return the probabilities of these rows, (N, 3) float64.

        Under torchrun every process computes a share of the rows and returns all of them.

        Args:
            limit: for a network that reads a whole row at once: the time for second orders of the
                answers, which the least decided rows get first.
        """
        # The first process fills the cache; the others read it.
        with join_processes().main_process_first():
            tokens = source.tokens(self.tokenizer, self.recipe)
            features = source.features(tokens) if self.model.feature_names else None

        collator = make_collator(self.model, tokens, self.tokenizer, tabular=features)
        budget = OrderBudget(limit.deadline) if limit else None
        logits = predict_logits(
            self.model,
            collator,
            rows,
            self.compute,
            both_orders=self.swap,
            progress=progress,
            budget=budget,
        )
        if limit and budget and budget.both < budget.rows:
            limit.log(
                f"time for both orders of the answers in {budget.both:,} of {budget.rows:,} rows, "
                "the least decided ones"
            )
        return logits_to_probabilities(logits)
