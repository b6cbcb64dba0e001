"""PyTorch's zip checkpoints without torch: the pickle in them is read as data, never run.

A checkpoint is a zip of `data.pkl` and `data/KEY`, one a storage. `data.pkl` is walked opcode by opcode (`pickletools`
lists them); of all that a pickle may name only tensors' rebuild functions and plain containers are known, as in
`torch.load(weights_only=True)`, and they only build the table of tensors here. Everything else is refused by name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.weights import Handle, TensorInfo, Weights, bfloat16_to_float32, checked_shape, shown
from hermitcrab.models.formats.zipped import Member, members, unpack

LARGEST_PICKLE = 1 << 26
DEEPEST = 12
MOST_ENTRIES = 2_000_000
STORAGES = {"FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16", "ByteStorage": "U8",
            "CharStorage": "I8", "ShortStorage": "I16", "IntStorage": "I32", "LongStorage": "I64", "BoolStorage": "BOOL"}  # fmt: skip
NUMPY = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
         "BOOL": "u1"}  # fmt: skip
STATE = ("state_dict", "model_state_dict", "model", "module", "params", "ema_state_dict", "g_ema", "net", "network")
PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT", "BINUNICODE", "SHORT_BINUNICODE",
           "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "STRING"}  # fmt: skip


@dataclass(frozen=True)
class _Name:
    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Object:
    """Something that a checkpoint carries beside its weights; its content is not looked at."""


class _Refused(Exception):
    pass


def read_file(path: Path, handle: Handle) -> Weights:
    """The tensors of a zip checkpoint that is open as `handle`.

    Raises:
        HermitcrabError: no such checkpoint, damaged, a bomb, or a pickle that names anything but tensors.
    """
    try:
        found = members(handle)
    except HermitcrabError as error:
        raise HermitcrabError(f"{path}: refused, because this pickle lies in a damaged file ({error})") from error
    heads = [m for name, m in found.items() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(heads) != 1 or heads[0].size > LARGEST_PICKLE:
        raise HermitcrabError(f"{path}: refused, because this pickle is no checkpoint of PyTorch (it has no data.pkl)")
    raw = handle.read(heads[0].offset, heads[0].packed, "data.pkl")
    if heads[0].deflated:
        raw = unpack(path, "data.pkl", raw, heads[0].size)
    try:
        content = _walk(raw.tobytes())
        named = _named(content)
    except _Refused as error:
        raise HermitcrabError(
            f"{path}: refused, because this pickle holds more than tensors or is damaged ({shown(str(error))}); "
            "use a release in safetensors"
        ) from error
    prefix = heads[0].name.removesuffix("data.pkl")
    if f"{prefix}byteorder" in found:
        order = found[f"{prefix}byteorder"]
        if handle.read(order.offset, min(order.packed, 8), "byteorder").tobytes() not in (b"little", b"little\n"):
            raise HermitcrabError(f"{path}: was written on a big-endian machine; use a release in safetensors")
    storages: dict[str, Member] = {}
    tensors = {}
    for name, tensor in named.items():
        member = found.get(f"{prefix}data/{tensor.storage.key}")
        if member is None:
            raise HermitcrabError(f"{path}: tensor `{shown(name)}`: its storage {shown(tensor.storage.key)} is missing")
        _fits(path, name, tensor, member)
        storages[name] = member
        tensors[name] = TensorInfo(name, tensor.storage.dtype, tensor.shape, member.offset, member.packed, path)
    return Weights(path, "pytorch", tensors, {}, {path: handle.stamp}, _decoder(path, named, storages), streams=False)


def _fits(path: Path, name: str, tensor: _Tensor, member: Member) -> None:
    """The view lies inside its storage, and the storage in its member."""
    checked_shape(path, name, list(tensor.shape))
    width = np.dtype(NUMPY[tensor.storage.dtype]).itemsize
    last, elements = tensor.start, 1
    for size, stride in zip(tensor.shape, tensor.strides, strict=True):
        last += max(size - 1, 0) * stride
        elements *= size
    if elements and (last + 1) * width > member.size:
        raise HermitcrabError(
            f"{path}: tensor `{shown(name)}` reaches beyond its storage of {member.size:,} bytes; refused"
        )
    if elements * width > max(64 * member.size, 1 << 20):
        raise HermitcrabError(
            f"{path}: tensor `{shown(name)}` of shape {list(tensor.shape)} repeats its storage; refused"
        )


def _decoder(
    path: Path, named: dict[str, _Tensor], storages: dict[str, Member]
) -> Callable[[TensorInfo, np.ndarray], np.ndarray]:
    def decode(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
        tensor, member = named[info.name], storages[info.name]
        if member.deflated:
            raw = unpack(path, info.name, raw, member.size)
        kind = np.dtype(NUMPY[info.dtype])
        flat = raw[: raw.size // kind.itemsize * kind.itemsize].view(kind)[tensor.start :]
        if 0 in tensor.shape:
            flat = np.zeros(0, kind)
        else:
            steps = tuple(s * kind.itemsize for s in tensor.strides)
            flat = np.array(np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)).ravel()
        if info.dtype == "BF16":
            return bfloat16_to_float32(flat)
        if info.dtype == "F16":
            return flat.astype(np.float32)
        return flat != 0 if info.dtype == "BOOL" else flat

    return decode


def _named(content: Any) -> dict[str, _Tensor]:
    """Names and tensors of the state dict: the whole of it, or what lies under one of the usual keys."""
    if not isinstance(content, dict):
        raise _Refused("it is no mapping of names to tensors")
    if not any(isinstance(v, _Tensor) for v in content.values()):
        inner = next((content[k] for k in STATE if isinstance(content.get(k), dict) and content[k]), None)
        content = content if inner is None else inner
    found: dict[str, _Tensor] = {}
    _collect(content, "", found, 0, [MOST_ENTRIES])
    if not found:
        raise _Refused("it holds no tensor")
    return found


def _collect(content: dict[Any, Any], prefix: str, found: dict[str, _Tensor], depth: int, left: list[int]) -> None:
    for key, value in content.items():
        left[0] -= 1  # a pickle of a few bytes can hold a mapping in itself a billion times
        if left[0] < 0:
            raise _Refused(f"more than {MOST_ENTRIES:,} entries")
        if isinstance(value, _Tensor):
            name = f"{prefix}{key}"
            if not isinstance(key, (str, int)) or not name.isprintable() or name in found:
                raise _Refused("a tensor's name is no printable text, or stands twice")
            found[name] = value
        elif isinstance(value, dict) and depth < DEEPEST:
            _collect(value, f"{prefix}{key}.", found, depth + 1, left)


def _walk(data: bytes) -> Any:
    """The object that a pickle describes, with tensors as `_Tensor`; nothing named in it is ever called."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    try:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in NUMBERS:
                stack.append(argument)
            elif name in PLAIN:
                stack.append(PLAIN[name])
            elif name in ("PROTO", "FRAME"):
                pass
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET"):
                stack.append({} if name == "EMPTY_DICT" else () if name == "EMPTY_TUPLE" else [])
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            elif name in ("TUPLE", "LIST", "DICT"):
                items = since_mark()
                stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _pairs({}, items))
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "GLOBAL":
                stack.append(_Name(*str(argument).split(" ", 1)))
            elif name == "STACK_GLOBAL":
                inner, outer = stack.pop(), stack.pop()
                stack.append(_Name(str(outer), str(inner)))
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop()))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments, function = stack.pop(), stack.pop()
                stack.append(_built(function, arguments))
            elif name == "BUILD":
                stack.pop()
            elif name in ("SETITEM", "SETITEMS"):
                items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                if isinstance(stack[-1], dict):
                    _pairs(stack[-1], items)
                elif not isinstance(stack[-1], _Object):
                    raise _Refused("items are set on something that is no mapping")
            elif name in ("APPEND", "APPENDS", "ADDITEMS"):
                items = [stack.pop()] if name == "APPEND" else since_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
            elif name == "POP":
                stack.pop()
            elif name == "STOP":
                return stack.pop()
            else:
                raise _Refused(f"the opcode {name}")
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        UnicodeError,
    ) as error:
        raise _Refused(f"damaged: {type(error).__name__}") from error
    raise _Refused("cut off before its end")


def _pairs(into: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        into[key if isinstance(key, (str, int, float, bool, type(None))) else str(type(key))] = value
    return into


def _storage(told: Any) -> _Storage:
    """`("storage", type, key, device, elements)`."""
    if not isinstance(told, tuple) or len(told) != 5 or told[0] != "storage" or not isinstance(told[1], _Name):
        raise _Refused("a reference to something that is no storage")
    kind, key, count = told[1], told[2], told[4]
    if kind.module not in ("torch", "torch.storage") or kind.name not in STORAGES:
        raise _Refused(f"a storage of {kind.module}.{kind.name}")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise _Refused("a storage without key or size")
    return _Storage(STORAGES[kind.name], key, count)


def _built(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("a call of something that has no name")
    called = f"{function.module}.{function.name}"
    if called == "torch._utils._rebuild_tensor_v2":
        storage, start, shape, strides = arguments[:4]
        plain = [start, *shape, *strides]
        if (
            not isinstance(storage, _Storage)
            or any(type(n) is not int or n < 0 for n in plain)
            or len(shape) != len(strides)
        ):
            raise _Refused("a tensor that is none")
        return _Tensor(storage, start, tuple(shape), tuple(strides))
    if called in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        if not isinstance(arguments[0], _Tensor):
            raise _Refused("a parameter that is no tensor")
        return arguments[0]
    if called == "collections.OrderedDict":
        return _pairs({}, [x for pair in (arguments[0] if arguments else []) for x in pair])
    if called in ("torch.Size", "builtins.set", "torch.device", "collections.defaultdict", "argparse.Namespace"):
        return {} if called == "collections.defaultdict" else _Object()
    raise _Refused(f"it calls {called}")
