"""YAML as a recipe is written in: the numbers and booleans of YAML 1.2, no key given twice, and the line of every key."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from hermitcrab.errors import UsageError


class Loader(yaml.SafeLoader):
    """YAML with the numbers and booleans of YAML 1.2 (`5e-4` is a number, `no` is a word) and no key given twice."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float",
            "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}  # fmt: skip
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9](?:[0-9_]*[0-9])?$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """A YAML 1.2 integer: `010` is ten, and `1_000` a thousand."""
    return int(node.value.replace("_", ""))


Loader.add_constructor("tag:yaml.org,2002:int", _int)


def check_twice(node: yaml.Node, file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UsageError(f"{file}:{key.start_mark.line + 1}: a key is a word, not a list or a mapping")
            if key.value in seen:
                raise UsageError(f"{file}:{key.start_mark.line + 1}: the key `{key.value}` is given twice")
            seen.add(key.value)
            check_twice(value, file)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            check_twice(value, file)


def line_of(node: yaml.Node | None, path: Sequence[str | int]) -> int:
    """Line (from 1) of the deepest node on `path`; an index into something that is no list is passed over."""
    line = node.start_mark.line + 1 if node else 1
    for step in path:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    line, node = key.start_mark.line + 1, value
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
    return line
