"""Download from Kaggle, run kernels on its GPUs, and submit.

Only `client` imports Kaggle's own package.
"""
