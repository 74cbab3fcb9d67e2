"""Generate a synthetic data set in Kaggle's file format, labelled by a known preference model."""
