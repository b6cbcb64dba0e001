"""What goes wrong, said in one sentence.

A message says what was wrong, where (file, line or row, field), what was received, what was expected, and the nearest
valid name. The command line prints it without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class HermitcrabError(Exception):
    """A run or a check failed, for a reason that the user can act on."""

    exit_code = 1


class Diverged(HermitcrabError):
    """A training whose numbers left what can be represented: its settings are to blame, not the machine."""


class UsageError(HermitcrabError):
    """The command line or the recipe asks for something that is not there."""

    exit_code = 2


class Contradiction(HermitcrabError):
    """A claim that somebody made is contradicted by evidence."""

    exit_code = 3


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The valid name closest to `name`, or None where nothing is close."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean `x`?`, or the list of what exists where nothing is close."""
    names = list(names)
    if close := nearest(name, names):
        return f"; did you mean `{close}`?"
    return f"; expected one of: {', '.join(sorted(names))}" if names else ""


def needs(module: str, extra: str) -> ModuleType:
    """Import a heavy library where it is used; the error names the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise HermitcrabError(
            f"this needs the library `{module}`, which is not installed; run: pip install 'hermitcrab[{extra}]'"
        ) from error
