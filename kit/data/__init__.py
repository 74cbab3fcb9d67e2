"""From raw competition files to rows a model can read: sample, raw, clean, split, preprocess, encode."""
