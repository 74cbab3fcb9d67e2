"""Judge predictions: losses with intervals, truth files, and whether a file is a valid submission."""
