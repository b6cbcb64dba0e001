"""A form that is a folder as transformers saves it: the words that its weights say of themselves, its tensors, and how it is opened."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.compress import Made, Tensor
from hermitcrab.digest import tree_files
from hermitcrab.models.formats import open_weights
from hermitcrab.store import disk_errors

if TYPE_CHECKING:
    from hermitcrab.compress import Source
    from hermitcrab.models.formats import Weights
    from hermitcrab.tasks import Start

PREFIX = "hermitcrab."
BITS = {"F64": 64.0, "F32": 32.0, "F16": 16.0, "BF16": 16.0}


def label(folder: Path, about: dict[str, str]) -> None:
    """Write `about` into the header of every weight file of the folder, beside and renamed; the tensors stay byte for byte.

    safetensors keeps a mapping of texts under `__metadata__` (its README, section "Format").
    """
    words = {PREFIX + key: value for key, value in sorted(about.items()) if value is not None}
    for file in sorted(folder.glob("*.safetensors")):
        beside = file.with_name(f".{file.name}")
        with disk_errors("cannot write"), open(file, "rb") as old, open(beside, "wb") as new:
            (length,) = struct.unpack("<Q", old.read(8))
            header = json.loads(old.read(length))
            header["__metadata__"] = {**header.get("__metadata__", {}), **words}
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            text += b" " * (-len(text) % 8)
            new.write(struct.pack("<Q", len(text)) + text)
            shutil.copyfileobj(old, new, 1 << 22)
            new.flush()
            os.fsync(new.fileno())
        os.replace(beside, file)


def said(path: Path) -> dict[str, str | None]:
    """What the weights at `path` say of themselves."""
    found = open_weights(path).metadata
    return {key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)}


def made(folder: Path, told: dict[str, Any], facts: dict[str, Any], reasons: dict[str, str] | None = None) -> Made:
    """A finished folder as a form leaves it, the weights first. `reasons`: of tensors that are not as was asked, by name."""
    weights: Weights = open_weights(folder)
    names = sorted(tree_files(folder), key=lambda name: (not name.endswith(".safetensors"), name))
    tensors = tuple(
        Tensor(name, info.dtype, tuple(info.shape), BITS.get(info.dtype, 8.0), (reasons or {}).get(name))
        for name, info in weights.tensors.items()
    )
    return Made(tuple(f"{folder.name}/{name}" for name in names), tensors, told, facts)


class FolderForm:
    """What the forms share whose result is such a folder: how it is opened again, and that the task itself is timed."""

    def __init__(self, source: Source):
        self.source = source

    def start(self, kind: str, folder: Path, made: Made) -> Start:
        from hermitcrab.compress import learning

        return learning.start_of(self.source, folder / kind)

    @staticmethod
    def said(path: Path) -> dict[str, str | None]:
        return said(path)

    @classmethod
    def pace(cls, start: Start) -> None:
        """By the task itself: it is a model of torch as the one that it was made from."""
