"""What an ONNX file may hold before a runtime opens it, and what it says of itself. Read field by field, torch-free.

A runtime believes its file: it opens data wherever a tensor says it lies, also in the subgraphs of `If` and `Loop`, and makes
tensors as large as a constant asks for. Here every node and tensor is looked at first. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.protobuf import Wire
from hermitcrab.models.formats.weights import Handle, open_checked, shown

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operators that onnxruntime itself has. All others come from a library that somebody would have to load."""
DEEPEST = 8  # graphs within graphs
MOST_NODES = 1 << 20
LARGEST_MADE = 1 << 32  # numbers that a constant may have a node make
MAKERS = ("ConstantOfShape", "Expand", "Tile", "Reshape", "Resize", "Pad")


@dataclass
class Told:
    """What a file says of itself.

    Attributes:
        metadata: its `metadata_props`.
        opset: of the standard operators.
        inputs, outputs: names, in order.
        operators: how many of each.
        files: those that hold its numbers, itself first.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    opset: int = 0
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def check_file(path: Path) -> Told:
    """Refuse a file that would have its runtime leave the folder, load a library, or make tensors without bound.

    Raises:
        HermitcrabError: with the node or tensor.
    """
    with open_checked(path) as handle:
        return _Check(path, handle).told


class _Check:
    def __init__(self, path: Path, handle: Handle):
        self.path, self.wire, self.told, self.nodes = path, Wire(handle), Told(files=[path]), 0
        constants: dict[str, int] = {}
        for number, kind, at, length in self.wire.fields(0, handle.size):
            if kind != 2:
                continue
            if number == 7:
                self._graph(at, at + length, 0, constants)
            elif number == 8:
                self._opset(at, at + length)
            elif number == 14:
                pair = {n: self.wire.text(a, count) for n, k, a, count in self.wire.fields(at, at + length) if k == 2}
                self.told.metadata[pair.get(1, "")] = pair.get(2, "")
            elif number in (20, 25):
                what = "training steps" if number == 20 else "functions of its own"
                raise HermitcrabError(f"{path}: holds {what}, which are not run; expected one plain graph")
        if not self.nodes:
            raise HermitcrabError(f"{path}: holds no ONNX graph")

    def _opset(self, start: int, end: int) -> None:
        domain, version = "", 0
        for number, kind, at, length in self.wire.fields(start, end):
            if number == 1 and kind == 2:
                domain = self.wire.text(at, length)
            elif number == 2 and kind == 0:
                version = at
        self._domain(domain, "the file")
        if domain in ("", "ai.onnx"):
            self.told.opset = version

    def _domain(self, domain: str, what: str) -> None:
        if domain not in DOMAINS:
            raise HermitcrabError(
                f"{self.path}: {what} asks for operators of `{shown(domain)}`, which a library of its own would bring; refused"
            )

    def _graph(self, start: int, end: int, depth: int, constants: dict[str, int]) -> None:
        if depth > DEEPEST:
            raise HermitcrabError(f"{self.path}: graphs stand within graphs more than {DEEPEST} deep")
        fields = list(self._messages(start, end))
        constants = {**constants}
        for number, at, length in fields:
            if number == 5:
                name, made = self._tensor(at, at + length)
                constants[name] = made
            elif number == 15:
                self._sparse(at, at + length)
            elif number in (11, 12) and depth == 0:
                name = next((self.wire.text(a, n) for f, a, n in self._messages(at, at + length) if f == 1), "")
                (self.told.inputs if number == 11 else self.told.outputs).append(name)
        for number, at, length in fields:
            if number == 1:
                self._node(at, at + length, depth, constants)

    def _messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        for number, kind, at, length in self.wire.fields(start, end):
            if kind == 2:
                yield number, at, length

    def _node(self, start: int, end: int, depth: int, constants: dict[str, int]) -> None:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise HermitcrabError(f"{self.path}: more than {MOST_NODES:,} nodes are no model")
        op, name, domain, inputs, outputs, made = "", "", "", [], [], 0
        for number, at, length in self._messages(start, end):
            if number == 1:
                inputs.append(self.wire.text(at, length))
            elif number == 2:
                outputs.append(self.wire.text(at, length))
            elif number == 3:
                name = self.wire.text(at, length)
            elif number == 4:
                op = self.wire.text(at, length)
            elif number == 5:
                made = max(made, self._attribute(at, at + length, depth, constants))
            elif number == 7:
                domain = self.wire.text(at, length)
        self._domain(domain, f"the node `{shown(name or op)}`")
        self.told.operators[op] = self.told.operators.get(op, 0) + 1
        if op == "Constant" and outputs:
            constants[outputs[0]] = made
        asked = max((constants.get(value, 0) for value in inputs), default=0) if op in MAKERS else 0
        if asked > LARGEST_MADE:
            raise HermitcrabError(
                f"{self.path}: the node `{shown(name or op)}` ({shown(op)}) would make {asked:,} numbers; at most {LARGEST_MADE:,}"
            )

    def _attribute(self, start: int, end: int, depth: int, constants: dict[str, int]) -> int:
        """The numbers that a constant shape in it asks for."""
        made = 0
        for number, at, length in self._messages(start, end):
            if number in (5, 10):
                made = max(made, self._tensor(at, at + length)[1])
            elif number in (6, 11):
                self._graph(at, at + length, depth + 1, constants)
            elif number in (22, 23):
                self._sparse(at, at + length)
        return made

    def _sparse(self, start: int, end: int) -> None:
        for number, at, length in self._messages(start, end):
            if number in (1, 2):
                self._tensor(at, at + length)

    def _tensor(self, start: int, end: int) -> tuple[str, int]:
        """Its name, and the product of what it holds where it may be a shape (int64, few)."""
        name, kind, external, raw = "", 0, False, b""
        place = None
        for number, wire, at, length in self.wire.fields(start, end):
            if number == 2 and wire == 0:
                kind = at
            elif number == 8 and wire == 2:
                name = self.wire.text(at, length)
            elif number == 9 and wire == 2 and length <= 128:
                raw = self.wire.bytes(at, length)
            elif number == 13 and wire == 2:
                pair = {n: self.wire.text(a, count) for n, k, a, count in self.wire.fields(at, at + length) if k == 2}
                place = pair.get(2, "") if pair.get(1) == "location" else place
                external = True
            elif number == 14 and wire == 0:
                external = external or at == 1
        if external:
            self._beside(name, place or "")
        if kind != 7 or not raw or len(raw) % 8:
            return name, 0
        product = 1
        for size in np.frombuffer(raw, "<i8").tolist():
            product *= max(size, 1)
        return name, product

    def _beside(self, name: str, place: str) -> None:
        if not place or "/" in place or "\\" in place or place.startswith(".") or not place.isprintable():
            raise HermitcrabError(
                f"{self.path}: tensor `{shown(name)}`: its data {shown(place)!r} does not lie beside the file; refused"
            )
        file = self.path.parent / place
        if file not in self.told.files:
            open_checked(file).__exit__()
            self.told.files.append(file)
