"""Turn the competition's files into rows for a model: parse, clean, split, tokenise, featurise."""
