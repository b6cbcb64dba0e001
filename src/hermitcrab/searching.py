"""What a search may be over: the rules of a recipe's `tune`, each with the sentence that says what is wrong.

A part of `recipe` that knows the whole recipe, so it imports it when it is asked.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from hermitcrab.errors import did_you_mean

if TYPE_CHECKING:
    from hermitcrab.recipe import Part, Recipe, Tune

UNSEARCHED = ("train.checkpoint_every", "train.profile")  # they change nothing of the result
LOSS = (
    "train.loss",
    "train.sequence_length",
    "train.truncate",
    "train.template",
)  # they change what is counted as loss
LARGEST = 256  # settings, where `trials` names no number


def searchable(part: type[Part] | None = None, path: str = "train") -> dict[str, Any]:
    """Dotted path → type of every key that `tune` may search over: what one training differs from another by."""
    from hermitcrab.recipe import Train, parts_in

    found: dict[str, Any] = {}
    for name, field in (part or Train).model_fields.items():
        if inner := next(iter(parts_in(field.annotation)), None):
            found |= searchable(inner, f"{path}.{name}")
        elif f"{path}.{name}" not in UNSEARCHED:
            kind: Any = field.annotation
            found[f"{path}.{name}"] = Annotated[kind, *field.metadata] if field.metadata else kind
    return found


def schema(told: dict[str, Any]) -> None:
    """For editors: the keys that may be searched over, each with a list of what its field takes."""
    told["additionalProperties"] = False
    for path, kind in searchable().items():
        items = TypeAdapter(kind).json_schema()
        told["properties"][path] = {"type": "array", "items": items, "minItems": 1, "uniqueItems": True}


def wrong(path: Sequence[str], message: str) -> PydanticCustomError:
    """What is wrong with the key at `path`, as a sentence of its own."""
    return PydanticCustomError("recipe", "{message}", {"message": message, "path": list(path)})


def check_keys(value: Any) -> Any:
    """`tune` as it was written: every key is known, and has a list."""
    from hermitcrab.recipe import Tune

    known = searchable()
    for key, values in value.items() if isinstance(value, dict) else ():
        if key in Tune.model_fields:
            continue
        if key not in known:
            raise wrong(("tune", key), f"tune has no key `{key}`{instead(str(key))}")
        if not isinstance(values, list) or not values:
            raise wrong(("tune", key), f"tune.{key}: expected a list of values to try. Received: {values!r}")
    return value


def instead(key: str) -> str:
    """What follows `tune has no key …`."""
    from hermitcrab.recipe import Tune

    known = searchable()
    if key in UNSEARCHED:
        return ", for it changes nothing of the result"
    if "." in key and not key.startswith("train."):
        return ": only keys of train are searched over, for every trial has the same data and the same evaluation"
    if inside := [path for path in known if path.startswith(f"{key}.")]:
        return f", which has keys of its own; expected one of: {', '.join(inside)}"
    return did_you_mean(key, known if "." in key else [*Tune.model_fields, *known])


def check(recipe: Recipe, tune: Tune) -> None:
    """A search that can be made: values that their fields take, each once, and figures that can be compared.

    Raises:
        PydanticCustomError: with the path of the key that is wrong.
    """
    if not tune.values:
        raise wrong(("tune",), "tune names no key to search over; expected such as train.learning_rate: [1e-4, 5e-4]")
    known, size = searchable(), tune.size
    for path, values in tune.values.items():
        _check_values(path, values, known[path])
    if tune.metric == "loss" and (moved := [path for path in tune.values if path in LOSS]):
        raise wrong(("tune", moved[0]), f"tune.{moved[0]} changes what is counted as loss, so losses cannot be compared; "
                    "set tune.metric to a metric of answers")  # fmt: skip
    if size == 1:
        raise wrong(("tune",), "tune has one setting, and a search needs two; give a key several values")
    if tune.trials is not None and tune.trials > size:
        raise wrong(("tune", "trials"), f"tune.trials asks for {tune.trials:,} settings; there are {size:,}")
    if tune.trials is None and size > LARGEST:
        raise wrong(("tune",), f"tune has {size:,} settings; set tune.trials to say how many of them are tried")
    for settings in tune.settings():
        recipe.with_settings(settings)


def draw(size: int, count: int, seed: int) -> list[int]:
    """`count` different numbers below `size`, in their order; the numbers are drawn, and no list of all of them is made."""
    source = random.Random(seed)
    if size <= sys.maxsize:
        return sorted(source.sample(range(size), count))
    drawn = set[int]()  # a range of so many has no length
    while len(drawn) < count:
        drawn.add(source.randrange(size))
    return sorted(drawn)


def _check_values(path: str, values: Sequence[Any], kind: Any) -> None:
    taken: list[Any] = []
    for value in values:
        try:
            found = TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            raise wrong(("tune", path), f"tune.{path}: {first_line(error)}. Received: {value!r}") from error
        if found in taken:
            raise wrong(("tune", path), f"tune.{path}: {value!r} is given twice. Received: {values}")
        taken.append(found)


def misfit(settings: Mapping[str, Any], error: ValidationError) -> PydanticCustomError:
    """Settings that do not go with each other, or with the rest of `train`."""
    said = ", ".join(f"{path}={value!r}" for path, value in settings.items())
    return wrong(("tune", next(iter(settings))), f"tune: {said}: {first_line(error)}")


def first_line(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ")
