"""hermitcrab: from an open base model and your data to an evaluated, packaged model with a signed record.

    import hermitcrab
    result = hermitcrab.run("recipe.yaml", "train.epochs=2")

`run`, `verify`, `compare` and `trace` are what the command line calls; they are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hermitcrab import trace
    from hermitcrab.api import Comparison, Result, Verified, compare, run, verify
    from hermitcrab.errors import HermitcrabError

__version__ = "0.1.0"
__all__ = ["Comparison", "HermitcrabError", "Result", "Verified", "__version__", "compare", "run", "trace", "verify"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hermitcrab' has no attribute '{name}'")
    if name == "trace":  # a module that can be called
        import importlib

        return importlib.import_module("hermitcrab.trace")
    from hermitcrab import api, errors

    return getattr(errors if name == "HermitcrabError" else api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
