"""Smaller forms of a model: one file here a form, which makes the files and says how they are opened again. Whether what came
out still is the model is `parity`'s to say, the same for every form.

A form's module imports heavy libraries where it uses them, so that `check`, `kinds` and `said` are free of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hermitcrab.errors import HermitcrabError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

    from hermitcrab.recipe import Compress, Evaluate, Train
    from hermitcrab.tasks import Start

FORMS = {
    "gguf": "hermitcrab.compress.gguf:Gguf",
    "openvino": "hermitcrab.compress.openvino:Openvino",
    "onnx": "hermitcrab.compress.onnx:Onnx",
    "prune": "hermitcrab.compress.prune:Prune",
    "distill": "hermitcrab.compress.distill:Distill",
}
"""Key of `compress`, which also is the folder in a package → the form's class."""
FOLDERS = ("gguf/", "openvino/", "onnx/", "prune/", "distill/")
TENSORS = "tensors.json"
"""Every tensor of every form, with its type and bits."""


@dataclass(frozen=True)
class Source:
    """What every form is made from.

    Attributes:
        model: folder of the sealed derived model: safetensors, config.json, tokenizer and what else its task saved.
        start: the same as a model to load; `base_start`: what it was derived from, None where nothing is known of it.
        base: base.json.
        about: what a file must say of itself: `name`, `license`, and of the base `base_digest`, `base_name`, `base_uri`,
            `base_revision`, as far as there is one; of an export `package_digest`, that of the package.
        calibration: training rows, those with the smallest ids. `validation`: rows on which something may be chosen.
        rows: folder of the prepared rows, `train.parquet` and `validation.parquet`; None where there is a model alone.
        init_seed: of the first weights of a student, where the recipe names one.
        metric: the one that decides.
    """

    model: Path
    name: str
    task: str
    start: Start
    base_start: Start | None
    train: Train
    evaluate: Evaluate
    compress: Compress
    base: dict[str, Any]
    about: dict[str, str]
    calibration: pa.Table
    validation: pa.Table
    rows: Path | None = None
    init_seed: int | None = None
    metric: str = ""


@dataclass(frozen=True)
class Tensor:
    """One tensor as it stands in a file. `bits`: of a weight, scales included. `reason`: why its type is not the one asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: float
    reason: str | None = None


@dataclass(frozen=True)
class Made:
    """What a form left.

    Attributes:
        files: relative to the folder that `make` was given, the first the one to open. They lie under the same paths in the
            package, below the folder of the format: so the paths of two kinds must differ.
        told: how it was made (JSON; what a machine decides, as seconds, belongs in `facts`).
    """

    files: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    told: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Made:
        tensors = tuple(Tensor(**{**t, "shape": tuple(t["shape"])}) for t in found["tensors"])
        return cls(tuple(found["files"]), tensors, found["told"], found["facts"])


class Form(Protocol):
    format: ClassVar[str]
    """Its key in `compress`, and its folder in a package."""

    runtime: ClassVar[str]
    """What `pace` runs in; a form without `pace` has none."""

    @classmethod
    def check(cls, part: Compress, base: dict[str, Any], path: Path) -> None:
        """Refuse (HermitcrabError) what the base at `path` rules out, before the training that would have been in vain."""
        ...

    @classmethod
    def kinds(cls, part: Compress) -> list[str]:
        """What is asked for, in the recipe's order; each names its entry and its files."""
        ...

    @classmethod
    def bits(cls, part: Compress, kind: str) -> float:
        """Bits of a weight that a file of this kind will have about, for estimates."""
        ...

    def __init__(self, source: Source): ...

    def make(self, kind: str, folder: Path) -> Made:
        """The files of one kind in `folder`, which is there and stays when the process is killed: what lies in it may be
        continued. What `make` returned is kept, and not made again."""
        ...

    def start(self, kind: str, folder: Path, made: Made) -> Start:
        """Those files as a model to load: `base["kind"]` says the format to `models.load`."""
        ...

    @staticmethod
    def said(path: Path) -> dict[str, str | None]:
        """What the file at `path` (the first of `Made.files`) says of itself, in the words of `Source.about`; torch-free, and
        `path` may be a stranger's (HermitcrabError)."""
        ...

    @classmethod
    def pace(cls, start: Start) -> Callable[[], tuple[int, str]] | None:
        """Opens the files in the runtime that will serve them, and gives the work that `Task.pace` does there: how many units it
        came to, and of what. None: they are opened by `models.load`, and the task itself is timed."""
        ...


def about(name: str, license: str, base: dict[str, Any]) -> dict[str, str]:
    """What every file must say of itself (`Source.about`)."""
    found = {"name": name, "license": license, "base_digest": base["digest"]}
    if base["kind"] != "scratch":
        found |= {"base_name": base["name"], "base_uri": base["uri"]}
        if base["revision"]:
            found["base_revision"] = base["revision"]
    return found


def load_form(name: str) -> Any:
    """The class of a form, by its key.

    Raises:
        HermitcrabError: there is no such form.
    """
    if name not in FORMS:
        raise HermitcrabError(f"no form of a model is named `{name}`{did_you_mean(name, FORMS)}")
    module, _, attribute = FORMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def asked(part: Compress) -> Iterator[tuple[Any, str]]:
    """Every form's class and kind that a recipe asks for."""
    for name in FORMS:
        if getattr(part, name):
            form = load_form(name)
            for kind in form.kinds(part):
                yield form, kind


def check(part: Compress, base: dict[str, Any], path: Path) -> None:
    """What the base itself rules out of the forms that are asked for.

    Raises:
        HermitcrabError: as each form says.
    """
    for name in FORMS:
        if getattr(part, name):
            load_form(name).check(part, base, path)
