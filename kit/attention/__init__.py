"""Compute attention faster than transformers does, and know which family of encoders can use it."""
