"""Architectures that no library has, each as a transformers model of its own `model_type`. Torch-free until one is built."""

from __future__ import annotations

import importlib
from typing import Any

OWN = {
    "mlp": "hermitcrab.models.architectures.mlp",
    "ft-transformer": "hermitcrab.models.architectures.ft_transformer",
    "matrix-factorization": "hermitcrab.models.architectures.recommender",
    "two-tower": "hermitcrab.models.architectures.recommender",
}


def complete(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The configuration with the defaults of an architecture of ours, checked; transformers knows and checks its own.

    Raises:
        HermitcrabError: a key or a value that cannot be right.
    """
    if config["model_type"] not in OWN:
        return config
    return importlib.import_module(OWN[config["model_type"]] + "_config").complete(config, where)


def register(model_type: str) -> None:
    """Make transformers know an architecture of ours; all others it knows already."""
    if model_type in OWN:
        importlib.import_module(OWN[model_type]).register()
