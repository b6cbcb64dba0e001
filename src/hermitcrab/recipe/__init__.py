"""The recipe: one YAML file that says everything about a model to be made.

Strict: an unknown key, a key given twice or a value of another type is an error with file, line, key and the nearest valid
name. Each nested part is owned by the stage that reads it; every field is read by something (a test watches).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from hermitcrab import searching
from hermitcrab.errors import UsageError, did_you_mean
from hermitcrab.recipe.compress import Compress, Distill, GgufType, Heal, Prune, Target
from hermitcrab.recipe.data import Data, Source, Split
from hermitcrab.recipe.parts import (
    Base,
    Baseline,
    Cluster,
    Evaluate,
    Format,
    Lora,
    Metric,
    Package,
    Part,
    Report,
    Train,
    Tune,
)
from hermitcrab.strict_yaml import Loader, check_twice, line_of

__all__ = [
    "Base", "Baseline", "Cluster", "Compress", "Data", "Distill", "Evaluate", "Format", "GgufType", "Heal", "Lora",
    "Metric", "Package", "Part", "Prune", "Recipe", "Report", "Source", "Split", "Target", "Train", "Tune",
    "fields_at", "from_value", "json_schema", "load", "parse", "parts_in", "to_yaml",
]  # fmt: skip


class Recipe(Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Letters, digits, dot, dash: the run's folder has this name."""
    task: str
    """A Hugging Face task name."""
    use: Literal["commercial", "non-commercial", "research"] = "commercial"
    """What the result is for; a license that forbids it is shown before anything runs."""
    base: Base
    data: Data
    tune: Tune | None = None
    """Search over a few values of `train` first; the best setting is the one that is trained, evaluated and shipped."""
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    compress: Compress = Compress()
    package: Package = Package()
    report: Report = Report()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _names_are_known(self) -> Recipe:
        from hermitcrab.tasks import misnamed

        for path, told in misnamed(self):
            raise searching.wrong(path, told)
        return self

    @model_validator(mode="after")
    def _search_is_sound(self) -> Recipe:
        if self.tune is not None:
            searching.check(self, self.tune)
        return self

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """This recipe with keys of `train` set by their dotted path.

        Raises:
            PydanticCustomError: a value that its field does not take, or that does not go with the others.
        """
        train = self.train.model_dump()
        for path, value in settings.items():
            _, *parents, last = path.split(".")
            here = train
            for step in parents:
                here = here[step]
            here[last] = value
        try:
            return self.model_copy(update={"train": Train.model_validate(train)})
        except ValidationError as error:
            raise searching.misfit(settings, error) from error


def fields_at(path: Sequence[str | int]) -> list[str]:
    """Valid keys of the part that lies at `path` in a recipe."""
    part: Any = Recipe
    for step in path:
        if isinstance(step, int):
            continue
        field = part.model_fields.get(step)
        if field is None:
            return []
        part = next(iter(parts_in(field.annotation)), None)
        if part is None:
            return []
    return list(part.model_fields)


def parts_in(annotation: Any) -> Iterator[type[Part]]:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from parts_in(inner)


def _explain(error: ValidationError, file: str, node: yaml.Node | None) -> str:
    lines = []
    for item in error.errors():
        # A union of types adds steps of its own to the path (`int`, `constrained-str`); keep what the user wrote.
        last = len(item["loc"]) - 1
        path = [
            s
            for i, s in enumerate(item["loc"])
            if isinstance(s, int)
            or re.fullmatch(r"[A-Za-z0-9_-]+", s)
            or (i == last and item["type"] == "extra_forbidden")
        ]
        path += item.get("ctx", {}).get("path", [])[len(path) :] if item["type"] == "recipe" else []
        words = ".".join(str(s) for s in path if not isinstance(s, int))
        where = f"{file}:{line_of(node, path)}"
        if item["type"] == "extra_forbidden":
            parent = ".".join(str(s) for s in path[:-1] if not isinstance(s, int)) or "the recipe"
            lines.append(
                f"{where}: {parent} has no key `{path[-1]}`{did_you_mean(str(path[-1]), fields_at(path[:-1]))}"
            )
        elif item["type"] == "recipe":
            lines.append(f"{where}: {item['msg']}")
        elif item["type"] == "missing":
            lines.append(f"{where}: {words} is missing")
        elif item["type"] == "value_error":  # of keys that do not go together: it says itself what was received
            lines.append(f"{where}: {words}: {item['ctx']['error']}")
        else:
            lines.append(f"{where}: {words}: {item['msg']}. Received: {item['input']!r}")
    return "\n".join(lines)


Override = str | Mapping[str, Any]  # `train.epochs=2`, or {"train.epochs": 2}


def parse(text: str, file: str = "recipe", overrides: Sequence[Override] = ()) -> Recipe:
    """A recipe from YAML text, checked with the overrides set.

    Raises:
        UsageError: with file, line, key and nearest valid name, one line for each thing that is wrong.
    """
    try:
        node = yaml.compose(text, Loader=Loader)
        if node is not None:
            check_twice(node, file)
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        raise UsageError(f"{place}: this is not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise UsageError(f"{file}: nested too deeply to be a recipe") from error
    return _checked(value, file, node, overrides)


def from_value(value: Mapping[str, Any] | Recipe, overrides: Sequence[Override] = ()) -> Recipe:
    """A recipe from a mapping (or another recipe), as `parse` reads it from text."""
    if isinstance(value, Recipe):
        if not overrides:
            return value
        value = value.model_dump(mode="json")
    return _checked(copy.deepcopy(dict(value)) if isinstance(value, Mapping) else value, "recipe", None, overrides)


def _checked(value: Any, file: str, node: yaml.Node | None, overrides: Sequence[Override]) -> Recipe:
    if not isinstance(value, dict):
        raise UsageError(f"{file}: a recipe is a mapping of keys to values. Received: {type(value).__name__}")
    given = []
    for override in overrides:
        if isinstance(override, str):
            given.append(_override(value, override))
        else:
            given += [_set(value, str(key), inner, f"{key}={inner!r}") for key, inner in override.items()]
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        told = _explain(error, file, node)
        if given:
            told += f"\n(with {', '.join(given)} set on top)"
        raise UsageError(told) from error


def _override(recipe: dict[str, Any], text: str) -> str:
    """Set `train.epochs=2` in a raw recipe; the value is read as YAML."""
    path, equals, raw = text.partition("=")
    if not equals:
        raise UsageError(f"`{text}` is no override; expected key=value, such as train.epochs=2")
    try:
        value = yaml.load(raw, Loader=Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{text}: the value is not YAML: {error}") from error
    return _set(recipe, path, value, text)


def _set(recipe: dict[str, Any], path: str, value: Any, text: str) -> str:
    """Set the key at a dotted path; `text` is how the user wrote it."""
    *parents, last = path.split(".")
    if parents[:1] == ["tune"]:  # the keys of a search are dotted paths themselves
        parents, last = ["tune"], path.removeprefix("tune.")
    here = recipe
    for i, step in enumerate(parents):
        if step not in fields_at(parents[:i]):
            raise UsageError(
                f"{text}: the recipe has no key `{'.'.join(parents[: i + 1])}`{did_you_mean(step, fields_at(parents[:i]))}"
            )
        inner = here[step] = {} if here.get(step) is None else here[step]
        if not isinstance(inner, dict):
            raise UsageError(f"{text}: `{'.'.join(parents[: i + 1])}` is a list here and cannot be set by key")
        here = inner
    known = fields_at(parents)
    if parents == ["tune"]:
        if last not in (*known, *searching.searchable()):
            raise UsageError(f"{text}: tune has no key `{last}`{searching.instead(last)}")
    elif known and last not in known:
        raise UsageError(f"{text}: {'.'.join(parents) or 'the recipe'} has no key `{last}`{did_you_mean(last, known)}")
    here[last] = value
    return text


def load(path: str | Path, overrides: Sequence[Override] = ()) -> Recipe:
    """A recipe from a file, with overrides such as `train.epochs=2`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise UsageError(f"{path}: no such recipe{near}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path), overrides)


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe with every default: what will run."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def json_schema() -> str:
    """JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "hermitcrab recipe"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
