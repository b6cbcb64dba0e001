"""What may stand in the configuration of an `ft-transformer`. Torch-free."""

from __future__ import annotations

from typing import Any

from hermitcrab.errors import HermitcrabError, did_you_mean

DEFAULTS: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 96,
    "dropout": 0.1,
}
LARGEST = 1 << 14


def complete(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The configuration with every default.

    Raises:
        HermitcrabError: a key that an ft-transformer does not have, or a value that it cannot have.
    """
    for key in config:
        if key not in ("model_type", "architectures", *DEFAULTS):
            raise HermitcrabError(f"{where}: an ft-transformer has no key `{key}`{did_you_mean(key, DEFAULTS)}")
    config = {**DEFAULTS, **config}
    for key in list(DEFAULTS)[:4]:
        if type(config[key]) is not int or not 0 < config[key] <= LARGEST:
            raise HermitcrabError(f"{where}: {key}: expected a number from 1 to {LARGEST:,}. Received: {config[key]!r}")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise HermitcrabError(
            f"{where}: hidden_size must be a multiple of num_attention_heads. "
            f"Received: {config['hidden_size']} and {config['num_attention_heads']}"
        )
    if not isinstance(config["dropout"], int | float) or not 0 <= config["dropout"] < 1:
        raise HermitcrabError(f"{where}: dropout: expected a share below 1. Received: {config['dropout']!r}")
    return config
