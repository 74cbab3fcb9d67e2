"""kit: a competition submission toolkit for Kaggle's LLM Classification Finetuning."""

__version__ = "0.1.0"
