"""Run on Kaggle: the code cells of the notebooks, and the session that they share.

`start` makes kit importable, `train` or `infer` does the work, and `show` shows what it has made.
`kit.kaggle.notebook` copies these files into the notebooks as they are, and each of them acts only
as `__main__`. `session` knows the folders and limits of a Kaggle session.
"""
