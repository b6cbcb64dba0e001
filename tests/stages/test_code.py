"""A stage's key names the code that decides what it leaves: all that its modules import, but for what only carries and tells."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hermitcrab.pipeline import ORDER, stage_named
from hermitcrab.stages import PACKAGE

# What a stage leans on without its result being decided there: messages, paths, the schema (its slice is in the key by value).
PLUMBING = {
    "__init__.py", "errors.py", "progress.py", "recipe/__init__.py", "recipe/parts.py", "recipe/compress.py",
    "recipe/clean.py", "recipe/filters.py", "recipe/data.py",
    "strict_yaml.py", "searching.py", "store.py", "digest.py", "references.py",
    "packages.py", "wheels.py", "debs.py", 
    "fetching/__init__.py", "fetching/http.py", "fetching/s3.py", "fetching/sql.py", "fetching/hubs.py",
    "environment.py", "stages/__init__.py", "lineage/__init__.py", "data/__init__.py",
    "evaluate/__init__.py", "train/__init__.py", "models/__init__.py", "train/profiling.py", "tasks/__init__.py",
}  # fmt: skip

UNCALLED = {"tasks/inputs.py"}  # reads what a user names on a command line; no stage calls it


def imports(file: Path) -> set[Path]:
    """Modules of this package that a module imports, wherever in it, but not for types alone."""
    found = set()
    stack: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        stack += ast.iter_child_nodes(node)
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hermitcrab"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("hermitcrab")]
        for name in names:
            path = PACKAGE.joinpath(*name.split(".")[1:])
            found |= {p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()}
    return found


@pytest.mark.parametrize("name", [*ORDER, "validate"])
def test_a_key_covers_every_module_that_decides(name):
    stage = stage_named(name)
    named: set[Path] = set()
    for entry in stage.code:
        path = PACKAGE / entry
        named |= set(path.rglob("*.py")) if path.is_dir() else {path}
    assert all(path.is_file() for path in named)
    reached, left = set(named), [path for path in named if path.relative_to(PACKAGE).as_posix() not in UNCALLED]
    while left:
        for module in imports(left.pop()) - reached:
            if module.relative_to(PACKAGE).as_posix() not in PLUMBING:
                reached.add(module)
                left.append(module)
    assert sorted(p.relative_to(PACKAGE).as_posix() for p in reached - named) == []
