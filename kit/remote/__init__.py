"""Kaggle, from here: download, kernels on its GPUs, submissions. Only `client` knows Kaggle's own package."""
