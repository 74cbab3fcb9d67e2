"""Let tools that call setup.py install kit; everything about it is in pyproject.toml."""

from setuptools import setup

setup()
