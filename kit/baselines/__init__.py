"""Fit reference models on the same rows as the networks: class prior, length, TF-IDF, boosted trees."""
