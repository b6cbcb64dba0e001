"""JSON schemas as far as every engine's grammar is known to hold an answer to them; all else is refused by name.

Grammar libraries drop keywords that they do not know, so an answer would break the schema unseen; and one of them takes its whole
engine down over a schema that it cannot read. So what is let through is listed here.
"""

from __future__ import annotations

import json
from typing import Any

from hermitcrab.errors import HermitcrabError, did_you_mean

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
DEEPEST = 16
LARGEST = 1 << 16  # characters
# Keyword → what its value must be. Those that only describe change nothing.
KEYWORDS: dict[str, tuple[type, ...]] = {
    "type": (str,), "properties": (dict,), "required": (list,), "additionalProperties": (bool,), "items": (dict,), "enum": (list,),
    "const": (str, int, float, bool, type(None)), "anyOf": (list,), "minItems": (int,), "maxItems": (int,),
    "title": (str,), "description": (str,), "default": (object,), "examples": (list,), "$schema": (str,),
}  # fmt: skip
MOST_ITEMS = 1000


def check(text: str) -> dict[str, Any]:
    """The schema, where it is one that is held to.

    Raises:
        HermitcrabError: what is no schema, or asks for more than is known to be held to.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HermitcrabError("the JSON schema is no JSON") from error
    if len(text) > LARGEST:
        raise HermitcrabError(f"the JSON schema has {len(text):,} characters; the most is {LARGEST:,}")
    _check(schema, "schema", 0)
    return schema


def _check(part: Any, where: str, depth: int) -> None:
    if not isinstance(part, dict):
        raise _wrong(where, "expected an object", part)
    if depth > DEEPEST:
        raise HermitcrabError(f"{where}: more than {DEEPEST} levels")
    for name, value in part.items():
        if name not in KEYWORDS:
            raise HermitcrabError(
                f"{where}: `{name[:60]}` is not held to by every engine{did_you_mean(name, KEYWORDS)}"
            )
        kinds = KEYWORDS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
            raise _wrong(f"{where}.{name}", f"expected {' or '.join(k.__name__ for k in kinds)}", value)
    if not part.keys() & {"type", "enum", "const", "anyOf"}:
        raise HermitcrabError(f"{where}: says neither `type` nor `enum`, `const` or `anyOf`")
    if "type" in part and part["type"] not in TYPES:
        raise _wrong(f"{where}.type", f"expected one of {', '.join(TYPES)}", part["type"])
    _check_parts(part, where, depth)


def _check_parts(part: dict[str, Any], where: str, depth: int) -> None:
    properties = part.get("properties", {})
    for name, value in properties.items():
        _check(value, f"{where}.properties.{name[:40]}", depth + 1)
    for name in part.get("required", []):
        if name not in properties:
            raise _wrong(f"{where}.required", "expected names of `properties`", name)
    if "items" in part:
        _check(part["items"], f"{where}.items", depth + 1)
    for number, value in enumerate(part.get("anyOf", [])):
        _check(value, f"{where}.anyOf.{number}", depth + 1)
    for name in ("enum", "anyOf"):
        if part.get(name) == []:
            raise HermitcrabError(f"{where}.{name}: is empty, so nothing satisfies it")
    least, most = part.get("minItems", 0), part.get("maxItems", MOST_ITEMS)
    if not 0 <= least <= most <= MOST_ITEMS:
        raise HermitcrabError(f"{where}: minItems and maxItems: expected 0 to {MOST_ITEMS:,}, in this order")


def _wrong(where: str, expected: str, received: Any) -> HermitcrabError:
    return HermitcrabError(f"{where}: {expected}. Received: {json.dumps(received)[:80]}")
