"""The code cells of our Kaggle notebooks: constant files, put into a notebook as they stand (see `kit.remote.notebook`).

Nothing here is imported by kit; the guard on `__name__` keeps an import without effect.
"""
