"""Make a sample in Kaggle's file format: prompts, answers, and labels from a known preference model."""
