"""OpenVINO IR: the constants of a model and the graph around them (.xml and .bin), read without OpenVINO.

Compressed weights come out as the numbers that the graph computes with: behind `Convert`, `Subtract` (of the zero point) and
`Multiply` (by the scale), by row or in groups that a `Reshape` joins. Numbers are found by offset and read later.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.onnx import NUMPY, Use, numbers
from hermitcrab.models.formats.openvino_xml import Layer, read_document
from hermitcrab.models.formats.weights import Stamp, TensorInfo, Weights, checked_shape, open_checked, shown

TYPES = {"f32": "F32", "f64": "F64", "f16": "F16", "bf16": "BF16", "i64": "I64", "i32": "I32", "i16": "I16", "i8": "I8",
         "u64": "U64", "u32": "U32", "u16": "U16", "u8": "U8", "i4": "I4", "u4": "U4", "boolean": "BOOL"}  # fmt: skip
WHOLE = ("I8", "U8", "I4", "U4")
FLOATS = ("F32", "F64", "F16", "BF16")
SMALL = 1 << 28  # bytes of a scale or a zero point
THROUGH = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose", "FakeConvert", "Unsqueeze", "Squeeze")
NUMBERLESS = ("string",)
AUTOMATIC = re.compile(r"[A-Z][A-Za-z]*_\d+")  # names that the converter made


@dataclass(frozen=True)
class _Packed:
    """What a tensor of whole numbers stands for: (q - zero) * scale, in the shape of the constant."""

    shape: tuple[int, ...]
    scale: np.ndarray | None
    zero: np.ndarray | None


def read_file(path: Path) -> Weights:
    """The constants of an OpenVINO model as numbers that its graph computes with.

    `metadata["said"]` is what the file says of itself (`rt_info`, by path), `metadata["uses"]` says what takes each tensor;
    tensors stand in the order in which the graph takes them, named after the layer that takes them where their own name
    says nothing.

    Raises:
        HermitcrabError: damaged, cut off, numbers outside the .bin, a type that is no plain number.
    """
    beside = path.with_suffix(".bin")
    with open_checked(path) as graph:
        document = read_document(path, graph)
        stamps: dict[Path, Stamp] = {path: graph.stamp}
    with open_checked(beside) as handle:
        stamps[beside] = handle.stamp
    constants = {
        id(layer): info
        for layer in document.layers
        if layer.type == "Const" and (info := _placed(path, beside, layer, stamps[beside].size)) is not None
    }
    plain = Weights(path, "openvino", {}, {}, stamps, _decoder({}), streams=False)
    helpers, packed, shapes = set(), {}, {}
    for layer in document.layers:
        info = constants.get(id(layer))
        if info is None:
            continue
        scale, zero, shape = _behind(layer, constants)
        if info.dtype in WHOLE and scale is not None:
            helpers |= {id(x) for x in (scale, zero) if x is not None}
            packed[id(layer)] = tuple(_read(plain, constants[id(x)]) if x is not None else None for x in (scale, zero))
        shapes[id(layer)] = shape if shape and np.prod(shape) == info.elements else info.shape
    kept = [layer for layer in document.layers if id(layer) in constants and id(layer) not in helpers]
    uses = {id(layer): use for layer in kept if (use := _use(layer)) is not None}
    kept.sort(key=lambda layer: uses[id(layer)].place if id(layer) in uses else len(document.layers))
    table: dict[str, _Packed] = {}
    told: dict[str, TensorInfo] = {}
    named: dict[str, Use] = {}
    for layer in kept:
        name = _name(layer, uses.get(id(layer)), told)
        info = constants[id(layer)]
        told[name] = TensorInfo(name, info.dtype, shapes[id(layer)], info.offset, info.nbytes, beside)
        if id(layer) in packed:
            table[name] = _Packed(info.shape, *packed[id(layer)])
        if id(layer) in uses:
            named[name] = uses[id(layer)]
    metadata = {"said": document.said, "uses": named}
    return Weights(path, "openvino", told, metadata, stamps, _decoder(table), streams=False)


def said(path: Path) -> dict[str, str]:
    """What the .xml says of the model: the values of its `rt_info`, by path (`hermitcrab/license`)."""
    with open_checked(path) as graph:
        return read_document(path, graph).said


def stateful(path: Path) -> bool:
    """Whether the model keeps something (keys and values) from call to call."""
    with open_checked(path) as graph:
        return any(layer.type == "ReadValue" for layer in read_document(path, graph).layers)


def _placed(path: Path, beside: Path, layer: Layer, size: int) -> TensorInfo | None:
    """Where the numbers of a constant lie; None for what holds no numbers."""
    kind = layer.data.get("element_type", "")
    if kind in NUMBERLESS:
        return None
    if kind not in TYPES:
        raise HermitcrabError(
            f"{path}: the constant `{shown(layer.name)}` is of type {shown(kind)}, which is not read here"
        )
    words = [word.strip() for word in layer.data.get("shape", "").split(",")]
    places = (layer.data.get("offset", ""), layer.data.get("size", ""))
    if not all(_number(word) for word in (*places, *(words if words != [""] else ()))):
        raise HermitcrabError(f"{path}: the constant `{shown(layer.name)}` has a shape or a place that is no number")
    shape = checked_shape(path, layer.name, [int(word) for word in words] if words != [""] else [])
    offset, length = (int(word) for word in places)
    dtype = TYPES[kind]
    elements = TensorInfo(layer.name, dtype, shape, 0, 0, path).elements
    nbytes = -(-elements // 2) if dtype in ("U4", "I4") else elements * np.dtype(NUMPY[dtype]).itemsize
    if length != nbytes:
        raise HermitcrabError(
            f"{path}: the constant `{shown(layer.name)}`: {kind} of shape {list(shape)} needs {nbytes:,} bytes; it says {length:,}"
        )
    if offset + length > size:
        raise HermitcrabError(f"{beside}: the constant `{shown(layer.name)}` would end beyond the file; it is cut off")
    return TensorInfo(layer.name, dtype, shape, offset, length, beside)


def _number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 18


def _constant(layer: Layer | None, constants: dict[int, TensorInfo]) -> Layer | None:
    """The constant that fills an input, straight or through a `Convert`."""
    for _ in range(3):
        if layer is None or id(layer) in constants:
            return layer
        layer = layer.inputs.get(0) if layer.type == "Convert" else None
    return None


def _behind(layer: Layer, constants: dict[int, TensorInfo]) -> tuple[Layer | None, Layer | None, tuple[int, ...]]:
    """Scale, zero point and final shape of a constant, from what is done to it before it is used."""
    scale = zero = None
    shape: tuple[int, ...] = ()
    here = layer
    for _ in range(6):
        taker = here.takers[0] if len(here.takers) == 1 else None
        if taker is None or taker.type not in THROUGH or taker.inputs.get(0) is not here:
            break
        other = _constant(taker.inputs.get(1), constants)
        if taker.type == "Subtract" and zero is None and scale is None:
            zero = other
        elif taker.type == "Multiply" and scale is None:
            scale = other
        elif taker.type == "Reshape":
            shape = tuple(taker.dims)
        elif taker.type == "Transpose":
            break
        here = taker
    return scale, zero, shape if all(size >= 0 for size in shape) else ()


def _read(plain: Weights, info: TensorInfo) -> np.ndarray:
    if info.nbytes > SMALL:
        raise HermitcrabError(f"{plain.path}: the scale `{shown(info.name)}` is too large to be one")
    with open_checked(info.file, plain.stamps[info.file]) as handle:
        raw = handle.read(info.offset, info.nbytes, f"tensor `{shown(info.name)}`")
    return numbers(info, raw).astype(np.float32).reshape(info.shape)


def _use(layer: Layer) -> Use | None:
    """The layer that computes with a constant, behind whatever unpacks it."""
    here, turned = layer, False
    for _ in range(8):
        if not here.takers:
            return None
        taker = here.takers[0]
        if taker.type in THROUGH and taker.inputs.get(0) is here:
            turned ^= taker.type == "Transpose"
            here = taker
            continue
        second = taker.inputs.get(1) is here
        rows_in = (
            taker.type == "MatMul" and taker.data.get("transpose_b" if second else "transpose_a", "false") != "true"
        )
        return Use(taker.type, taker.place, taker.name, turned ^ rows_in)
    return None


def _name(layer: Layer, use: Use | None, taken: dict[str, TensorInfo]) -> str:
    """A constant by its name in the model; torch's and the converter's own additions left out."""
    name = layer.name.removesuffix("_compressed").removeprefix("self.")
    if (
        use is not None
        and AUTOMATIC.fullmatch(name)
        and use.op in ("MatMul", "Gather", "Convolution", "GroupConvolution")
    ):
        scope = use.name.split("/")[0].removeprefix("__module.")
        name = name if not scope or AUTOMATIC.fullmatch(scope) else f"{scope}.weight"
    while name in taken or not name:
        name += "'"
    return name


def _decoder(table: dict[str, _Packed]) -> Callable[[TensorInfo, np.ndarray], np.ndarray]:
    def decode(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
        values = numbers(info, raw)
        if info.name not in table:
            return values
        packed = table[info.name]
        values = values.astype(np.float32).reshape(packed.shape)
        for part, combine in ((packed.zero, np.subtract), (packed.scale, np.multiply)):
            if part is None:
                continue
            if not _fits(part.shape, packed.shape):
                raise HermitcrabError(
                    f"{info.file}: scale or zero point of `{shown(info.name)}` has the shape {list(part.shape)}, which does not fit"
                )
            with np.errstate(all="ignore"):
                combine(values, part, out=values)
        return values.ravel()

    return decode


def _fits(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether one can be spread over the other without making it larger."""
    return len(part) <= len(whole) and all(
        a in (1, b) for a, b in zip(part[::-1], whole[::-1], strict=False)
    )  # fmt: skip
