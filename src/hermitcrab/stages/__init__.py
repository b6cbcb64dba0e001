"""What a stage is: a slice of the recipe and input artifacts in, one folder out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hermitcrab.digest import digest_file, digest_json
from hermitcrab.recipe import Base, Part, Recipe
from hermitcrab.references import Resolved
from hermitcrab.store import Artifact, Draft

PACKAGE = Path(__file__).parent.parent


class Trial(Protocol):
    """The same run with other settings of `train`: what a search makes and compares."""

    def ensure(self, stage: Stage) -> Artifact:
        """That stage's artifact for these settings: from the store if it was ever made, else made now."""
        ...


@dataclass(frozen=True)
class Job:
    """What a stage is given: its slice, its inputs by stage name, the draft that it fills.

    `places` says where references were found on this machine (`{reference: path}`): facts, never part of a key; `resolved`
    says what they were resolved to.
    """

    part: Any
    inputs: Mapping[str, Artifact]
    draft: Draft
    places: Mapping[str, Path]
    resolved: Mapping[str, Resolved] = field(default_factory=dict)
    base: Base = field(default_factory=lambda: Base(path="scratch"))
    processes: int = 1
    cluster: str | None = None
    trial: Callable[[Mapping[str, Any]], Trial] | None = None

    @property
    def base_path(self) -> Path:
        return place_of(self.base, self.places)


def place_of(base: Base, places: Mapping[str, Path]) -> Path:
    """Where a base lies (for `scratch`: its tokenizer; nowhere, where it has none)."""
    if base.path == "scratch":
        return places[base.tokenizer] if base.tokenizer else Path()
    return places[base.path]


@dataclass(frozen=True)
class Stage:
    """`code` names the files and folders of this package that decide what the stage leaves; their digest is in its key."""

    name: str
    inputs: tuple[str, ...]
    code: tuple[str, ...]
    slice: Callable[[Recipe], Part]
    run: Callable[[Job], None]

    def code_digest(self) -> str:
        return code_digest(self.code)


def code_digest(names: Sequence[str]) -> str:
    """The digest of these files and folders of this package."""
    files: dict[str, str] = {}
    for name in names:
        path = PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            files[file.relative_to(PACKAGE).as_posix()] = digest_file(file)
    return digest_json(files)
