"""hermitcrab: from an open base model and your data to an evaluated, packaged model with a signed record."""

__version__ = "0.1.0"
