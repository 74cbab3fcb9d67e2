"""Search a recipe's keys by trials, each an ordinary run. See `sweep`, `run` and `ranking`."""
