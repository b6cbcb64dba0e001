"""ONNX: the initializers of a model and the graph around them, read from the protobuf wire format without its library.

Numbers are found by offset and read later, so a file of any size opens at once. Quantized weights come out as the numbers
that the graph computes with: behind `DequantizeLinear` (QDQ) and behind `MatMulInteger`, `ConvInteger` or `QLinear…`,
whose scale stands elsewhere in the graph. Data beside the file is read from plain files in the same folder only.
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.protobuf import Wire
from hermitcrab.models.formats.weights import (
    Stamp,
    TensorInfo,
    Weights,
    bfloat16_to_float32,
    checked_shape,
    open_checked,
    shown,
)

TYPES = {1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32", 13: "U64",
         16: "BF16", 21: "U4", 22: "I4"}  # fmt: skip
NUMPY = {"F32": "<f4", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "I32": "<i4", "I64": "<i8", "BOOL": "u1", "F16": "<f2",
         "F64": "<f8", "U32": "<u4", "U64": "<u8", "BF16": "<u2"}  # fmt: skip
SMALL = 1 << 24  # bytes of a scale or a zero point
THROUGH = ("Cast", "Mul", "DequantizeLinear", "Transpose", "Identity", "Reshape")
AUTOMATIC = re.compile(r"(onnx::\w+_\d+|\d+|\w*_?(MatMul|Gemm|Conv)_\d+)(_quantized|_DequantizeLinear)?")


@dataclass
class Node:
    op: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    axis: int | None = None
    transposed: bool = False
    """`transB` of a Gemm."""


@dataclass(frozen=True)
class Use:
    """The node that computes with a tensor, behind whatever unpacks it. `turned`: its rows are the inputs."""

    op: str
    place: int
    name: str
    turned: bool


@dataclass
class _Tensor:
    name: str = ""
    kind: int = 0
    dims: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None  # offset, bytes
    typed: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    external: bool = False


def read_file(path: Path) -> Weights:
    """The initializers of an ONNX model as numbers that its graph computes with.

    `metadata["nodes"]` is the graph, a list of `Node` in its own order, `metadata["uses"]` says what takes each tensor (`Use`);
    tensors stand in the order in which the graph takes them. A tensor whose name says nothing (`onnx::MatMul_7`)
    is named after the node that takes it.

    Raises:
        HermitcrabError: damaged, cut off, a path that climbs, a type that is no plain number.
    """
    with open_checked(path) as handle:
        wire = Wire(handle)
        tensors, nodes = _model(wire)
        if not tensors and not nodes:
            raise HermitcrabError(f"{path}: holds no ONNX graph")
        stamps: dict[Path, Stamp] = {path: handle.stamp}
        infos: dict[str, TensorInfo] = {}
        typed: dict[str, list[tuple[int, int]]] = {}
        for tensor in tensors:
            info = _placed(wire, tensor, stamps)
            if info is None:
                continue
            if info.name in infos:
                raise HermitcrabError(f"{path}: the tensor `{shown(info.name)}` stands twice")
            infos[info.name] = info
            if tensor.raw is None and not tensor.external:
                typed[info.name] = tensor.typed.get(_typed_field(info.dtype), [])
    graph = _Graph(path, infos, nodes)
    scales = graph.scales()
    uses = graph.uses()
    names = graph.names(uses)
    plain = Weights(path, "onnx", infos, {}, stamps, _decoder({}), streams=False)
    table: dict[str, tuple[np.ndarray, np.ndarray | None, int | None]] = {}
    for name, (scale, zero, axis) in scales.items():
        if infos[scale].nbytes > SMALL or (zero in infos and infos[zero].nbytes > SMALL):
            raise HermitcrabError(f"{path}: the scale of `{shown(name)}` is too large to be one")
        table[names[name]] = (plain.read(scale), plain.read(zero) if zero in infos else None, axis)
    helpers = {x for scale, zero, _ in scales.values() for x in (scale, zero)}
    last = len(nodes)
    order = sorted((n for n in infos if n not in helpers), key=lambda n: uses[n].place if n in uses else last)
    told = {names[n]: replace(infos[n], name=names[n]) for n in order}
    metadata = {"nodes": nodes, "uses": {names[n]: use for n, use in uses.items()}}
    return Weights(path, "onnx", told, metadata, stamps, _decoder(table), streams=False)


def _model(wire: Wire) -> tuple[list[_Tensor], list[Node]]:
    tensors: list[_Tensor] = []
    nodes: list[Node] = []
    for number, kind, at, length in wire.fields(0, wire.handle.size):
        if number == 7 and kind == 2:
            for inner, inner_kind, start, size in wire.fields(at, at + length):
                if inner == 1 and inner_kind == 2:
                    node, value = _node(wire, start, start + size)
                    nodes.append(node)
                    tensors += value
                elif inner == 5 and inner_kind == 2:
                    tensors.append(_tensor(wire, start, start + size))
    return tensors, nodes


def _node(wire: Wire, start: int, end: int) -> tuple[Node, list[_Tensor]]:
    node, held = Node(), []
    for number, kind, at, length in wire.fields(start, end):
        if kind != 2:
            continue
        if number in (1, 2):
            (node.inputs if number == 1 else node.outputs).append(wire.text(at, length))
        elif number == 3:
            node.name = wire.text(at, length)
        elif number == 4:
            node.op = wire.text(at, length)
        elif number == 5:
            name, axis, value = _attribute(wire, at, at + length)
            if name == "axis":
                node.axis = axis
            elif name == "transB":
                node.transposed = axis == 1
            elif name == "value" and value is not None:
                held.append(value)
    if node.op == "Constant" and node.outputs:
        for value in held:
            value.name = node.outputs[0]
        return node, held
    return node, []


def _attribute(wire: Wire, start: int, end: int) -> tuple[str, int | None, _Tensor | None]:
    name, axis, value = "", None, None
    for number, kind, at, length in wire.fields(start, end):
        if number == 1 and kind == 2:
            name = wire.text(at, length)
        elif number == 3 and kind == 0:
            axis = at - (1 << 64) if at >> 63 else at
        elif number == 5 and kind == 2:
            value = _tensor(wire, at, at + length)
    return name, axis, value


def _tensor(wire: Wire, start: int, end: int) -> _Tensor:
    found = _Tensor()
    for number, kind, at, length in wire.fields(start, end):
        if number == 1:
            if kind == 0:
                found.dims.append(at)
            else:
                inner = at
                while inner < at + length:
                    size, inner = wire.varint(inner, at + length)
                    found.dims.append(size)
            if len(found.dims) > 64:
                raise wire.fail("a tensor of more than 64 dimensions", start)
        elif number == 2 and kind == 0:
            found.kind = at
        elif number == 8 and kind == 2:
            found.name = wire.text(at, length)
        elif number == 9 and kind == 2:
            found.raw = (at, length)
        elif number == 13 and kind == 2:
            pair = {n: wire.text(a, count) for n, k, a, count in wire.fields(at, at + length) if k == 2}
            found.outside[pair.get(1, "")] = pair.get(2, "")
        elif number == 14 and kind == 0:
            found.external = at == 1
        elif number in (4, 5, 7, 10, 11) and kind == 2:
            found.typed.setdefault(number, []).append((at, length))
    return found


def _typed_field(dtype: str) -> int:
    return {"F32": 4, "F64": 10, "I64": 7, "U32": 11, "U64": 11}.get(dtype, 5)


def _placed(wire: Wire, tensor: _Tensor, stamps: dict[Path, Stamp]) -> TensorInfo | None:
    """Where the numbers of a tensor lie; None for what holds no numbers (text, complex)."""
    path, name = wire.handle.path, tensor.name
    if tensor.kind not in TYPES:
        return None
    if not name.isprintable() or not name:
        raise HermitcrabError(f"{path}: the tensor name `{shown(name)}` is no printable text")
    dtype, shape = TYPES[tensor.kind], checked_shape(path, name, tensor.dims)
    elements = TensorInfo(name, dtype, shape, 0, 0, path).elements
    nbytes = -(-elements // 2) if dtype in ("U4", "I4") else elements * np.dtype(NUMPY[dtype]).itemsize
    if tensor.external:
        return _beside(path, tensor, TensorInfo(name, dtype, shape, 0, nbytes, path), stamps)
    if tensor.raw is not None:
        offset, length = tensor.raw
    else:
        parts = tensor.typed.get(_typed_field(dtype), [])
        if dtype not in ("F32", "F64") or len(parts) > 1:
            return _rewritten(wire, tensor, TensorInfo(name, dtype, shape, 0, nbytes, path))
        offset, length = parts[0] if parts else (0, 0)
    if length != nbytes:
        raise HermitcrabError(
            f"{path}: tensor `{shown(name)}`: {dtype} of shape {list(shape)} needs {nbytes:,} bytes, but {length:,} are there"
        )
    return TensorInfo(name, dtype, shape, offset, nbytes, path)


def _rewritten(wire: Wire, tensor: _Tensor, info: TensorInfo) -> TensorInfo | None:
    """Numbers stored as varints: of no interest as weights (they are shapes and indices), so they are left out."""
    parts = sum(length for _, length in tensor.typed.get(_typed_field(info.dtype), []))
    if info.elements > max(parts, 1) * 8:
        raise HermitcrabError(f"{info.file}: tensor `{shown(info.name)}` has fewer numbers than its shape says")
    return None


def _beside(path: Path, tensor: _Tensor, info: TensorInfo, stamps: dict[Path, Stamp]) -> TensorInfo:
    place = tensor.outside.get("location", "")
    if not place or "/" in place or "\\" in place or place.startswith(".") or not place.isprintable():
        raise HermitcrabError(
            f"{path}: tensor `{shown(info.name)}`: its data {shown(place)!r} does not lie beside the file; refused"
        )
    file = path.parent / place
    if file not in stamps:
        with open_checked(file) as handle:
            stamps[file] = handle.stamp
    offset, length = (tensor.outside.get(k, d) for k, d in (("offset", "0"), ("length", str(info.nbytes))))
    if not offset.isdecimal() or not length.isdecimal() or int(length) != info.nbytes or len(offset) > 18:
        raise HermitcrabError(f"{path}: tensor `{shown(info.name)}`: offset or length of its data is no such number")
    if int(offset) + info.nbytes > stamps[file].size:
        raise HermitcrabError(f"{file}: tensor `{shown(info.name)}` would end beyond the file; it is cut off")
    return TensorInfo(info.name, info.dtype, info.shape, int(offset), info.nbytes, file)


class _Graph:
    """Who takes what."""

    def __init__(self, path: Path, infos: dict[str, TensorInfo], nodes: list[Node]):
        self.path, self.infos, self.nodes = path, infos, nodes
        self.takers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in node.inputs:
                self.takers.setdefault(name, []).append(node)

    def scales(self) -> dict[str, tuple[str, str, int | None]]:
        """Quantized tensor → the names of its scale and zero point, and the axis that the scale goes along."""
        found: dict[str, tuple[str, str, int | None]] = {}
        for node in self.nodes:
            i = [*node.inputs, *[""] * 9]
            if node.op == "DequantizeLinear" and i[0] in self.infos and i[1] in self.infos:
                found[i[0]] = (i[1], i[2], 1 if node.axis is None else node.axis)
            elif node.op in ("MatMulInteger", "ConvInteger") and i[1] in self.infos:
                scale = self._scale_behind(node)
                if scale:
                    found[i[1]] = (scale, i[3], -1 if node.op == "MatMulInteger" else 0)
            elif node.op in ("QLinearMatMul", "QLinearConv") and i[3] in self.infos and i[4] in self.infos:
                found[i[3]] = (i[4], i[5], -1 if node.op == "QLinearMatMul" else 0)
            elif (
                node.op == "Cast"
                and i[0] in self.infos
                and node.outputs
                and self.infos[i[0]].dtype in ("I8", "U8", "I4", "U4")
            ):
                for taker in self.takers.get(node.outputs[0], []):
                    other = next((x for x in taker.inputs if x in self.infos), None)
                    if taker.op == "Mul" and other is not None:
                        found[i[0]] = (other, "", None)
            elif node.op == "Gather" and i[0] in self.infos and node.outputs:
                for taker in self.takers.get(node.outputs[0], []):
                    t = [*taker.inputs, *[""] * 3]
                    if taker.op == "DequantizeLinear" and t[0] == node.outputs[0] and t[1] in self.infos:
                        found[i[0]] = (t[1], t[2], None)
        return found

    def _scale_behind(self, node: Node) -> str | None:
        """MatMulInteger → Cast → Mul(·, Mul(scale of the input, scale of the weights))."""
        out = node.outputs[0] if node.outputs else ""
        for _ in range(3):
            for taker in self.takers.get(out, []):
                if taker.op == "Mul":
                    for other in taker.inputs:
                        if other in self.infos and other != out:
                            return other
                        for maker in self.nodes:
                            if other != out and other in maker.outputs and maker.op == "Mul":
                                for name in maker.inputs:
                                    if name in self.infos:
                                        return name
            cast = next((t for t in self.takers.get(out, []) if t.op == "Cast" and t.outputs), None)
            if cast is None:
                return None
            out = cast.outputs[0]
        return None

    def uses(self) -> dict[str, Use]:
        """Tensor → the node that computes with it."""
        place = {id(node): i for i, node in enumerate(self.nodes)}
        found = {}
        for name in self.infos:
            out, turned = name, False
            for _ in range(6):
                taker = next(iter(self.takers.get(out, [])), None)
                if taker is None:
                    break
                if taker.op in THROUGH and taker.outputs:
                    turned ^= taker.op == "Transpose"
                    out = taker.outputs[0]
                    continue
                rows_in = taker.op in ("MatMul", "MatMulInteger", "QLinearMatMul") or (
                    taker.op == "Gemm" and not taker.transposed
                )
                found[name] = Use(taker.op, place[id(taker)], taker.name, turned ^ rows_in)
                break
        return found

    def names(self, uses: dict[str, Use]) -> dict[str, str]:
        """The file's name of a tensor → the one that it is shown under: a taker's name where its own says nothing."""
        out: dict[str, str] = {}
        used: set[str] = set()
        for name in self.infos:
            better = name
            if AUTOMATIC.fullmatch(name) and name in uses and uses[name].name.isprintable():
                better = uses[name].name.strip("/").replace("/", ".") or name
            while better in used or (better != name and better in self.infos):
                better += "'"
            used.add(better)
            out[name] = better
        return out


def _decoder(
    table: dict[str, tuple[np.ndarray, np.ndarray | None, int | None]],
) -> Callable[[TensorInfo, np.ndarray], np.ndarray]:
    def decode(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
        values = numbers(info, raw)
        if info.name not in table:
            return values
        scale, zero, axis = table[info.name]
        values = values.astype(np.float32).reshape(info.shape)

        def along(x: np.ndarray) -> np.ndarray:
            if (
                axis is None
                and x.ndim == len(info.shape)
                and all(a in (1, b) for a, b in zip(x.shape, info.shape, strict=True))
            ):
                return x.astype(np.float32)
            if x.size == 1 or axis is None or not info.shape:
                return x.reshape(-1)[:1].astype(np.float32)
            at = axis % len(info.shape)
            if x.ndim == 1 and x.size == info.shape[at]:
                shape = [1] * len(info.shape)
                shape[at] = x.size
                return x.astype(np.float32).reshape(shape)
            if x.ndim == len(info.shape) and info.shape[at] % x.shape[at] == 0:  # blocks along the axis
                return np.repeat(x.astype(np.float32), info.shape[at] // x.shape[at], at)
            raise HermitcrabError(
                f"{info.file}: the scale of `{shown(info.name)}` has the shape {list(x.shape)}, which does not fit"
            )

        with np.errstate(all="ignore"):
            if zero is not None:
                values -= along(zero)
            values *= along(scale)
        return values.ravel()

    return decode


def numbers(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
    """Packed and short floating types as plain ones; four bits stand low half first."""
    if info.dtype in ("U4", "I4"):
        both = np.stack([raw & 15, raw >> 4], 1).ravel()[: info.elements].astype(np.int8)
        return np.where(both > 7, both - 16, both) if info.dtype == "I4" else both
    values = raw.view(NUMPY[info.dtype])
    if info.dtype == "F16":
        return values.astype(np.float32)
    if info.dtype == "BF16":
        return bfloat16_to_float32(values.view(np.uint8))
    return values != 0 if info.dtype == "BOOL" else values
