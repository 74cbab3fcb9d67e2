"""Plan a training: count its memory without a GPU, and put rows, hours and disk beside it."""
