"""What may stand in the configuration of a `matrix-factorization` or a `two-tower`. Torch-free."""

from __future__ import annotations

from typing import Any

from hermitcrab.errors import HermitcrabError, did_you_mean

DEFAULTS: dict[str, Any] = {"hidden_size": 64, "dropout": 0.1}
LARGEST = 1 << 13


def complete(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The configuration with every default.

    Raises:
        HermitcrabError: a key that it does not have, or a value that it cannot have.
    """
    for key in config:
        if key not in ("model_type", "architectures", *DEFAULTS):
            raise HermitcrabError(f"{where}: a {config['model_type']} has no key `{key}`{did_you_mean(key, DEFAULTS)}")
    config = {**DEFAULTS, **config}
    if type(config["hidden_size"]) is not int or not 0 < config["hidden_size"] <= LARGEST:
        raise HermitcrabError(
            f"{where}: hidden_size: expected a number from 1 to {LARGEST:,}. Received: {config['hidden_size']!r}"
        )
    if not isinstance(config["dropout"], int | float) or not 0 <= config["dropout"] < 1:
        raise HermitcrabError(f"{where}: dropout: expected a share below 1. Received: {config['dropout']!r}")
    return config
