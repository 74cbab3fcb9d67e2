"""Talk to Kaggle from here: download, push kernels to its GPUs, submit. Only `client` knows Kaggle's own package."""
