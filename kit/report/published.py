"""The reference study's figures as published, to stand beside a comparison: they are of other rows.

Source: the study's table of three Siamese encoders on its own 10% validation share of the competition's rows.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedScore:
    """One model of the study; what was said of its best epoch and size, in words."""

    name: str
    log_loss: float
    accuracy: float
    best_epoch: str
    parameters: str


STUDY = (
    PublishedScore("DeBERTa-v3-xsmall", 1.0597, 0.454, "8", "≈ 70 million"),
    PublishedScore("RoBERTa-base", 1.0492, 0.464, "2", "≈ 125 million"),
    PublishedScore("ELECTRA-large", 1.0974, 0.349, "never converged", "≈ 335 million"),
)
