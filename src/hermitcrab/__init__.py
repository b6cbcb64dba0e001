"""hermitcrab: from an open base model and your data to an evaluated, packaged model with a signed record."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`hermitcrab.trace` without an import of its own, and without its cost where it is not used."""
    if name == "trace":
        import importlib

        return importlib.import_module("hermitcrab.trace")
    raise AttributeError(f"module 'hermitcrab' has no attribute {name!r}")
