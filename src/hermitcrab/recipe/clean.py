"""`data.clean`: an ordered list of filters, each a name, or a name with its options (`{near-dedup: {threshold: 0.7}}`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from hermitcrab.errors import did_you_mean
from hermitcrab.recipe import filters
from hermitcrab.recipe.parts import Count, Part


class Normalize(Part):
    form: Literal["NFC", "NFKC"] | None = None
    """Unicode normal form; null: that of `data.normalize`."""


class ExactDedup(Part):
    """Of rows that ask the same, one stays."""


class NearDedup(Part):
    threshold: Annotated[float, Field(ge=0.3, le=1)] = 0.8
    """Least Jaccard similarity of the n-grams of words of two texts that are duplicates."""
    ngram: Count = 5
    """Words in an n-gram. A Han character is a word."""
    permutations: Annotated[int, Field(ge=16, le=1024)] = 128
    """Places of a MinHash signature."""
    verify: bool = True
    """Compute the similarity of every pair that the signatures point at. Without, that they do is enough."""
    distance: Annotated[int, Field(ge=0, le=20)] = 6
    """Of images, in the place of all the others: most bits of 64 in which two perceptual hashes differ that are duplicates."""


class LineDedup(Part):
    unit: Literal["line", "paragraph"] = "line"
    """What is compared: lines, or what stands between empty lines."""
    min_characters: Count = 30
    """Shorter ones are left alone: they say little of where they come from."""


class Decontaminate(Part):
    ngram: Count | None = None
    """Also: training rows that share so many words in a row with a held-out row. Null: only rows that say the same as one."""
    policy: Literal["drop", "mark", "stop"] = "drop"
    """Of rows that share an n-gram. `mark`: they stay, and are listed in `contamination.parquet`, as they are in any case."""


OPTIONS: dict[str, type[Part]] = {
    **filters.OPTIONS,
    "normalize": Normalize,
    "exact-dedup": ExactDedup,
    "near-dedup": NearDedup,
    "line-dedup": LineDedup,
    "decontaminate": Decontaminate,
}
"""Name in `data.clean` → its options."""


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("recipe", "{message}", {"message": message, "path": ["data", "clean"]})


def _entry(value: Any) -> Any:
    """An entry as it is recorded: a name, or a name with every option spelled out."""
    name, options = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else (value, None)
    if not isinstance(name, str):
        raise _wrong(f"data.clean: expected a name, or one name with its options. Received: {value!r}")
    if name not in OPTIONS:
        raise _wrong(f"data.clean: there is no filter `{name}`{did_you_mean(name, OPTIONS)}")
    if name is value:
        return name
    try:
        return {name: OPTIONS[name].model_validate({} if options is None else options).model_dump(mode="json")}
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(step) for step in (name, *first["loc"]))
        if first["type"] == "extra_forbidden":
            known = OPTIONS[name].model_fields
            raise _wrong(
                f"data.clean: {name} has no key `{first['loc'][-1]}`{did_you_mean(str(first['loc'][-1]), known)}"
            ) from error
        raise _wrong(f"data.clean: {path}: {first['msg']}. Received: {first['input']!r}") from error


def _once(entries: list[Any]) -> list[Any]:
    names = [name for name, _ in named(entries)]
    for name in names:
        if names.count(name) > 1:
            raise _wrong(f"data.clean: `{name}` stands there twice; one is enough")
    return entries


def named(entries: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and options of each entry, in order."""
    return [(entry, {}) if isinstance(entry, str) else next(iter(entry.items())) for entry in entries]


def _schema() -> dict[str, Any]:
    def inline(name: str) -> dict[str, Any]:
        """Its schema without references: they would point into a place that the whole recipe's schema does not have."""
        told = OPTIONS[name].model_json_schema()
        defs = told.pop("$defs", {})

        def resolved(value: Any) -> Any:
            if isinstance(value, dict) and "$ref" in value:
                return {
                    **resolved(defs[value["$ref"].rsplit("/", 1)[1]]),
                    **{k: v for k, v in value.items() if k != "$ref"},
                }
            if isinstance(value, dict):
                return {key: resolved(inner) for key, inner in value.items()}
            return [resolved(inner) for inner in value] if isinstance(value, list) else value

        return resolved(told)

    mappings = {"type": "object", "properties": {name: inline(name) for name in OPTIONS}, "additionalProperties": False,
                "minProperties": 1, "maxProperties": 1}  # fmt: skip
    return {"anyOf": [{"type": "string", "enum": list(OPTIONS)}, mappings]}


def _show(schema: dict[str, Any]) -> None:  # made where a schema is asked for, not whenever a recipe is read
    schema.clear()
    schema.update(_schema())


Entry = Annotated[str | dict[str, Any], BeforeValidator(_entry), Field(json_schema_extra=_show)]
Clean = Annotated[list[Entry], AfterValidator(_once)]


def steps(entries: Sequence[Any], form: Literal["NFC", "NFKC"]) -> list[tuple[str, Part]]:
    """Name and checked options of each entry; `form` is what `normalize` takes where it has none of its own."""
    found = []
    for name, options in named(entries):
        part = OPTIONS[name].model_validate(options)
        if isinstance(part, Normalize) and part.form is None:
            part = part.model_copy(update={"form": form})
        found.append((name, part))
    return found
