"""Fit reference models that a network has to beat: class prior, length, TF-IDF, boosted trees.

Use `baselines.run.run_baseline`. The names are here rather than in `models`, so that the command
line can list them without importing scikit-learn.
"""

BASELINES = ("uniform", "prior", "length", "tfidf", "boosted")
