"""Run on Kaggle: the code cells of the notebooks, and the session that they share.

`start` is the first code cell and makes kit importable; `train` or `infer` is the second.
`kit.kaggle.notebook` copies these three files into the notebooks as they are, and each of them acts
only as `__main__`. `session` knows the folders and limits of a Kaggle session.
"""
