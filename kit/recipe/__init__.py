"""Define, load and check experiments: `spec` has the records, `load` reads TOML files and overrides."""
