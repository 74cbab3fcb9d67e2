"""Compute attention: faster kernels than transformers has, and which family of encoders takes which."""
