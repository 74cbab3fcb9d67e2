"""Metadata, version ranges, extras and the `kit` script. Exact versions live in constraints.txt.

The ranges also hold on Kaggle's notebook image (Python 3.12, torch >= 2.10, transformers >= 5).
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (ROOT / "kit/__init__.py").read_text(encoding="utf-8")
)[1]

setup(
    name="kit-llm-preference",
    version=VERSION,
    description="A competition submission toolkit for Kaggle's LLM Classification Finetuning",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["kit", "kit.*"]),
    package_data={
        "kit": ["recipe/shipped/*.toml", "model/configs/*.json", "reporting/page.*", "py.typed"]
    },
    install_requires=[
        "accelerate>=1.3",  # transformers' Trainer runs on it; 5.0 says 1.1 and needs 1.3
        "click>=8.2",
        "kaggle>=2.2.4,<3",
        "kagglesdk>=0.1.37,<1",  # the part of it that kit talks through
        "huggingface_hub>=1.3",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "packaging>=24",
        "pandas>=2.2.2",
        "protobuf>=5",  # SentencePiece models of the hub's DeBERTa folders are protobuf files
        "pyarrow>=17",
        "requests>=2.31",
        "rich>=13.7",
        "safetensors>=0.4.5",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "sentencepiece>=0.2",
        "six>=1.16",  # kaggle imports it without declaring it
        "threadpoolctl>=3.5",
        "tokenizers>=0.22.2",
        "tomli-w>=1.1",
        "torch>=2.10",
        "transformers>=5.0,<6",
    ],
    extras_require={
        "bench": ["datasets>=4", "sentence-transformers>=5.2"],  # the peers of benchmarks/peers.py
        "lora": ["peft>=0.18"],
        "tensorboard": ["tensorboard>=2.18"],
        "test": [
            "build>=1.2",
            "hypothesis>=6.100",
            "peft>=0.18",
            "pytest>=8",
            "pytest-xdist>=3.6.1",
            "ruff>=0.17",
            "setuptools>=77",
            "tensorboard>=2.18",
        ],
    },
    entry_points={"console_scripts": ["kit=kit.cli.main:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
