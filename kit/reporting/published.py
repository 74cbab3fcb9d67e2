"""List the scores that the reference study published. Use `STUDY`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedScore:
    """A model of the reference study, scored on the study's own rows.

    Best epoch and parameters are in the study's words.
    """

    name: str
    log_loss: float
    accuracy: float
    best_epoch: str
    parameters: str


# The study's table of three Siamese encoders, on its own validation rows: a random 10% of the
# competition's.
STUDY = (
    PublishedScore("DeBERTa-v3-xsmall", 1.0597, 0.454, "8", "≈ 70 million"),
    PublishedScore("RoBERTa-base", 1.0492, 0.464, "2", "≈ 125 million"),
    PublishedScore("ELECTRA-large", 1.0974, 0.349, "never converged", "≈ 335 million"),
)
