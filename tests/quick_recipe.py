"""Set a recipe's keys so that a training takes a second: `QUICK`, for `load_recipe` or `--set`."""

QUICK = (
    "encode.max_tokens=32",
    "train.epochs=2",
    "train.batch_size=16",
    "train.evals_per_epoch=4",
    "train.label_smoothing=0.05",
)
