"""Score predictions with intervals, read labels, and validate submissions."""
