"""Decide how many sessions the folds of a training need. Use `sessions_needed`."""

# What Kaggle gives a session of this competition, and keeps of its output.
KAGGLE_HOURS = 9.0
KAGGLE_OUTPUT_BYTES = 20e9

# Start, preprocessing and the end of a session.
OVERHEAD_HOURS = 0.25


def sessions_needed(
    fold_hours: float,
    folds: int,
    max_hours: float = KAGGLE_HOURS,
    fold_bytes: float = 0.0,
    shared_hours: float = 0.0,
) -> int:
    """Return 1 if all folds fit into one session, else one for each fold; 0 if not even one fits.

    Args:
        fold_bytes: of a fold's output.
        shared_hours: of a fold's hours, those that all folds of a session spend once.
    """
    available = max_hours - OVERHEAD_HOURS
    if fold_hours > available or fold_bytes > KAGGLE_OUTPUT_BYTES:
        return 0
    hours = folds * fold_hours - (folds - 1) * shared_hours
    together = hours <= available and folds * fold_bytes <= KAGGLE_OUTPUT_BYTES
    return 1 if together else folds
