"""What may stand in the configuration of an `mlp`. Torch-free."""

from __future__ import annotations

from typing import Any

from hermitcrab.errors import HermitcrabError, did_you_mean

ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu")
DEFAULTS: dict[str, Any] = {"hidden_sizes": [128, 64], "activation": "relu"}
FITTED = ("image_size", "num_channels", "id2label", "label2id")  # these follow from the training rows
WIDEST = 1 << 20


def complete(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The configuration with every default.

    Raises:
        HermitcrabError: a key that an mlp does not have, or a value that it cannot have.
    """
    for key in config:
        if key not in ("model_type", "architectures", *DEFAULTS, *FITTED):
            raise HermitcrabError(f"{where}: an mlp has no key `{key}`{did_you_mean(key, DEFAULTS)}")
    config = {**DEFAULTS, **config}
    sizes = config["hidden_sizes"]
    if not isinstance(sizes, list) or not all(type(n) is int and 0 < n <= WIDEST for n in sizes):
        raise HermitcrabError(
            f"{where}: hidden_sizes: expected a list of widths from 1 to {WIDEST:,}. Received: {sizes}"
        )
    activation = config["activation"]
    if activation not in ACTIVATIONS:
        raise HermitcrabError(f"{where}: activation: no `{activation}`{did_you_mean(str(activation), ACTIVATIONS)}")
    return config
