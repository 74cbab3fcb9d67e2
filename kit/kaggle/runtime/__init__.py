"""Run on Kaggle: the code cells of the notebooks, and the session that they share.

`start` runs first, then `train` or `infer`, which may import kit because of it; `kit.kaggle.notebook` puts the files into
a notebook as they stand. Each acts only as `__main__`. `session` knows the folders of Kaggle's machine.
"""
