"""Define, load and check experiments: `spec` has the keys, `load` reads files and overrides."""
