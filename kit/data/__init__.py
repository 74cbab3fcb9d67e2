"""Turn the competition's files into rows a model can read: parse, clean, split, tokenise, count features."""
