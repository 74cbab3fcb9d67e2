"""Settings of a training that takes a second; in a file of its own, since there are several `conftest`s."""

QUICK = (
    "encode.max_tokens=32",
    "train.epochs=2",
    "train.batch_size=16",
    "train.evals_per_epoch=4",
    "train.label_smoothing=0.05",
)
