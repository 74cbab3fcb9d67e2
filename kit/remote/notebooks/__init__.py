"""The code cells of our Kaggle notebooks: constant files that `kit.kaggle.notebook` puts into one as they stand.

`start` runs first; then `train` or `infer`, which may import kit because of it. Each acts only as `__main__`.
"""
