"""What verbs share: their table, kinds of arguments, and the arguments that several have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hermitcrab.errors import UsageError

Answer = tuple[Any, Callable[[], str], int | Callable[[], int]]
"""An object for --json, a text for people, and an exit status or what goes on after both are printed and tells it in the end."""

Verb = tuple[str, Callable[[argparse.Namespace], Answer], str, list[tuple[tuple[str, ...], dict[str, Any]]]]
"""What it does, call, example, arguments."""


def verb(
    name: str, help: str, call: Callable[[argparse.Namespace], Answer], example: str, *arguments: Any
) -> tuple[str, Verb]:
    return name, (help, call, example, list(arguments))


def arg(*names: str, **more: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, more


def count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"expected a number from 1. Received: {text[:40]}")
    return int(text)


def level(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 0.1:
        raise argparse.ArgumentTypeError(f"expected a level between 0 and 0.1. Received: {text[:40]}")
    return value


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds, over 0. Received: {text[:40]}")
    return value


def size(text: str) -> int:
    """`100MB`, `90MiB`, `120000000`: a size."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(digits) :].strip().upper()
    try:
        return max(1, int(float(digits) * units[unit]))
    except (ValueError, KeyError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"expected a size, such as 100MB. Received: {text[:40]}") from error


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e12:
        raise argparse.ArgumentTypeError(f"expected a number above 0. Received: {text[:40]}")
    return value


def listed(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []


def columns_of(given: Sequence[str]) -> dict[str, str]:
    if wrong := next((word for word in given if "=" not in word), None):
        raise UsageError(f"--column {wrong}: expected WANTED=COLUMN, such as prompt=question")
    return dict(column.partition("=")[::2] for column in given)


RECIPE = arg("recipe", help="a recipe (YAML)")
OVERRIDES = arg("overrides", nargs="*", metavar="key=value", help="set a key of the recipe, such as train.epochs=2")
STORE = arg("--store", default=".crab/store", metavar="FOLDER", help="where artifacts live (default: .crab/store)")
RUNS = arg("--runs", default="runs", metavar="FOLDER", help="where runs leave report and package (default: runs)")
MODEL = arg("model", help="a package's folder, a run's name or folder, or a reference to a model")
SIGNER = arg(
    "--key", type=Path, metavar="PEM", help="public key of the signer; without it the signer is not authenticated"
)
UNVERIFIED = arg("--unverified", action="store_true", help="use what is no package, or one that does not verify")
ON_ROWS = [
    arg("--type", default="auto", help="what the file is, as in a recipe (default: by its ending); idx: images, with --labels"),
    arg("--labels", metavar="FILE", help="of images of type idx: the file of their labels"),
    arg("--format", default="prompt-completion", help="what a row of the file is: text, prompt-completion, messages, image-label"),
    arg("--column", action="append", default=[], metavar="WANTED=COLUMN",
         help="a column of the file, or a text with {column} in it (may be given again)"),
    arg("--choices", metavar="A,B,…", help="answers to choose from (default: those that a package records; none: generated)"),
    arg("--metric", action="append", default=[], metavar="NAME", help="what is measured; the first decides (may be given again)"),
    arg("--rows", type=count, metavar="N", help="ask only so many rows (default: all)"),
    arg("--max-new-tokens", type=count, default=64, metavar="N", help="the longest generated answer (default: 64)"),
]  # fmt: skip
ALPHA = arg("--alpha", type=level, default=1e-6, metavar="LEVEL", help="level of the exact tests (default: 1e-6)")
