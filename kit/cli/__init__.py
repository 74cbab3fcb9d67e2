"""Read the command line: one file for each stage of the pipeline, joined in `main`."""
