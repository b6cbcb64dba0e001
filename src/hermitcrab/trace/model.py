"""A model as `trace` sees it: matrices with roles, read a few rows at a time, whatever file they lie in."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import OpenWeights, TensorInfo, Weights, open_weights
from hermitcrab.trace.parts import Part, Seen, Structure
from hermitcrab.trace.structure import understand

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
GRAPHS = ("onnx", "openvino")  # formats that say what is done with a tensor
MOST_TENSORS = 200_000
LARGEST_JSON = 1 << 26
LARGEST_MATRIX = 1 << 31  # bytes as float32 of one that must be held whole
SMALLEST = 512  # numbers; what is smaller is never evidence
BLOCK = 48  # rows and columns looked at to tell a constant


@dataclass
class Heads:
    """How attention is cut. `pairing`: how rotary positions pair dimensions of a head: "half", "none" or "unknown"."""

    query: int = 0
    kv: int = 0
    size: int = 0
    pairing: str = "unknown"


@dataclass
class Model:
    """Opened weights with their structure. Use it in a `with`: files stay open in between.

    `constants`: tensors that are never evidence, with the reason. `broken`: those that hold NaN or infinities.
    """

    path: Path
    weights: Weights
    structure: Structure
    heads: Heads
    reader: OpenWeights
    constants: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    parts: dict[tuple[int, str, int], Part] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    """Tensor of whole numbers → the tensor beside it that holds the scale of each row."""
    limit: int | None = None
    """Only so many first rows of each matrix are there (a sketch)."""
    _vocabulary: list[str] | None = None
    _whole: tuple[str, np.ndarray] | None = None

    def __enter__(self) -> Model:
        self.reader.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.__exit__()
        self._whole = None

    @property
    def name(self) -> str:
        return str(self.path)

    def info(self, part: Part) -> TensorInfo:
        return self.weights.info(part.tensor)

    def tensor(self, name: str) -> np.ndarray:
        """A whole tensor as float32 in the file's shape; the last one read is kept (fused tensors are asked for in turn)."""
        if self._whole is not None and self._whole[0] == name:
            return self._whole[1]
        info = self.weights.info(name)
        if info.elements * 4 > LARGEST_MATRIX:
            raise HermitcrabError(
                f"{self.path}: tensor `{name}` is too large to be held whole ({info.elements:,} numbers)"
            )
        values = self.weights.read(name).astype(np.float32, copy=False)
        if name in self.scales:
            scale = self.weights.read(self.scales[name]).astype(np.float32)
            values = values * scale.reshape(-1, *[1] * (values.ndim - 1))
        self.reader.bytes_read += info.nbytes
        self._whole = (name, values)
        return values

    def matrix(self, part: Part) -> np.ndarray:
        """A part as float32 of shape (out, in)."""
        values = self.tensor(part.tensor)
        if part.index >= 0:
            values = values[part.index]
        if part.turned:
            values = values.reshape(values.shape[0], -1).T
        else:
            values = values.reshape(values.shape[0], -1)
        values = values[part.start : part.start + part.shape[0]]
        return self._unpaired(part, values)

    def _unpaired(self, part: Part, values: np.ndarray) -> np.ndarray:
        """llama.cpp reorders query and key rows of llama for its rotary embedding; undone here as in `models.ggml`."""
        if not self.reordered or part.role not in ("q", "k") or not self.heads.size:
            return values
        heads = part.shape[0] // self.heads.size
        paired = values.reshape(heads, self.heads.size // 2, 2, values.shape[1])
        return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(values.shape)

    @property
    def reordered(self) -> bool:
        return self.weights.format == "gguf" and self.weights.metadata.get("general.architecture") == "llama"

    def gain(self, layer: int, which: int) -> np.ndarray | None:
        """The gain vector before attention (0) or the MLP (1) of a layer; None where none was recognized."""
        name = self.structure.gains.get((layer, which))
        return None if name is None else self.tensor(name).astype(np.float64)

    def vocabulary(self) -> list[str]:
        """Tokens by id, from the tokenizer beside or inside the weights; empty where there is none."""
        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self.path, self.weights)
        return self._vocabulary


def open_model(path: str | Path) -> Model:
    """Open the weights at `path` (a file or a folder) and recognize what is in them.

    Raises:
        HermitcrabError: no weights, none that hold floating-point numbers, or a damaged file.
    """
    weights = open_weights(Path(path))
    if len(weights.tensors) > MOST_TENSORS:
        raise HermitcrabError(
            f"{path}: {len(weights.tensors):,} tensors are more than a model has (at most {MOST_TENSORS:,})"
        )
    uses = weights.metadata.get("uses", {}) if weights.format in GRAPHS else {}
    scales = _scales(weights)
    seen, constants = [], {}
    for name, info in weights.tensors.items():
        if name in scales.values():
            continue
        if not numeric(weights, info):
            constants[name] = "whole numbers or truth values: an index, a mask or packed bits"
            continue
        use = uses.get(name)
        shape = _folded(info.shape)
        seen.append(Seen(name, shape, use.turned if use is not None and len(info.shape) == 2 else None))
    if not any(len(s.shape) >= 2 and s.shape[0] * s.shape[1] >= SMALLEST for s in seen):
        raise HermitcrabError(
            f"{path}: holds no matrix of floating-point weights to compare (tensors: {len(weights.tensors):,})"
        )
    structure = understand(seen, ordered=weights.format in GRAPHS)
    model = Model(Path(path), weights, structure, Heads(), weights.opened(), constants)
    model.scales = scales
    model.parts = {p.key: p for p in structure.parts}
    model.heads = _heads(model)
    return model


def numeric(weights: Weights, info: TensorInfo) -> bool:
    """Whether a tensor holds weights: floating-point, or a quantized type that its reader turns into such."""
    if weights.format == "gguf":
        return info.dtype not in ("I8", "I16", "I32", "I64")
    if weights.format in GRAPHS:
        return info.dtype in FLOATS or (info.dtype in ("I8", "U8", "I4", "U4") and info.elements >= SMALLEST)
    return info.dtype in FLOATS or (info.dtype == "I8" and len(info.shape) >= 2)


def _scales(weights: Weights) -> dict[str, str]:
    """Integer matrices of a safetensors file whose scales lie beside them under a name with the same stem."""
    if weights.format != "safetensors":
        return {}
    beside = {name.rsplit(".", 1)[0]: name for name in weights.tensors if re.search(r"scale$", name)}
    out = {}
    for name, info in weights.tensors.items():
        scale = beside.get(name.rsplit(".", 1)[0]) or beside.get(name)
        if info.dtype == "I8" and len(info.shape) >= 2 and scale is not None and scale != name:
            count = weights.tensors[scale].elements
            if count in (1, info.shape[0]) and weights.tensors[scale].dtype in FLOATS:
                out[name] = scale
    return out


def _folded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of one are nothing to structure, but for convolutions, whose kernel may be 1 x 1."""
    return shape if len(shape) != 3 or min(shape) > 1 else tuple(s for s in shape if s > 1) or (1,)


def _heads(model: Model) -> Heads:
    """From the configuration or the metadata where the shapes allow it, else from the shapes."""
    s = model.structure
    q, k = (next((p.shape[0] for p in s.parts if p.role == role), 0) for role in "qk")
    if not q or not k:
        return Heads()
    pairing = "none" if s.learned_positions else "half"
    told: list[tuple[Any, Any]] = []
    meta = model.weights.metadata
    if model.weights.format == "gguf":
        kind = meta.get("general.architecture")
        told.append((meta.get(f"{kind}.attention.head_count"), meta.get(f"{kind}.attention.head_count_kv")))
    config = read_json(_folder(model.path) / "config.json")
    if isinstance(config, dict):
        count = next((config[n] for n in ("num_attention_heads", "n_head", "n_heads") if n in config), None)
        told.append((count, config.get("num_key_value_heads", count)))
    for count, kv in told:
        kv = count if kv is None else kv
        if type(count) is int and type(kv) is int and 0 < kv <= count and q % count == 0 and k == q // count * kv:
            size = q // count
            return Heads(count, kv, size, pairing if size % 2 == 0 else "unknown")
    return Heads(pairing="none" if s.learned_positions else "unknown")


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def read_json(path: Path) -> Any:
    """A small JSON file of a stranger, or None where there is none that can be read."""
    try:
        if not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST_JSON:
            return None
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return None


def _vocabulary(path: Path, weights: Weights) -> list[str]:
    if weights.format == "gguf":
        tokens = weights.metadata.get("tokenizer.ggml.tokens")
        return [t for t in tokens if isinstance(t, str)] if isinstance(tokens, list) else []
    told = read_json(_folder(path) / "tokenizer.json")
    inner = told.get("model") if isinstance(told, dict) else None
    vocabulary = inner.get("vocab") if isinstance(inner, dict) else None
    if isinstance(vocabulary, dict):
        pairs = [(i, t) for t, i in vocabulary.items() if type(i) is int and 0 <= i < 1 << 24]
        out = [""] * (max((i for i, _ in pairs), default=-1) + 1)
        for i, token in pairs:
            out[i] = token
        return out
    if isinstance(vocabulary, list):
        return [str(x[0]) if isinstance(x, list) and x else "" for x in vocabulary]
    words = _folder(path) / "vocab.txt"
    if words.is_file() and not words.is_symlink() and words.stat().st_size < LARGEST_JSON:
        return words.read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def constant(values: np.ndarray) -> str | None:
    """Why a matrix is no learned weight, or None: one or two values, a filter bank, or what its neighbors foretell.

    Sinusoids, windowed Fourier bases and ramps obey a linear recurrence along an axis, which no trained weight does.
    """
    block = np.asarray(values, np.float64).reshape(values.shape[0], -1)
    if not np.isfinite(block).all():
        return None
    if block.size == 0 or block.min() == block.max():
        return "one value throughout"
    sample = block[:4096, :4096]
    few = sample[:: max(1, sample.shape[0] // 256)]
    if ((few == few.min()) | (few == few.max())).all():
        return "two values throughout: a mask or an identity"
    for part in (sample[:BLOCK, : 6 * BLOCK], sample[: 6 * BLOCK, :BLOCK].T):
        if part.shape[1] >= 24 and _foretold(part):
            return "a sinusoid, a Fourier basis or a ramp"
    if min(sample.shape) >= 8 and _filter_bank(sample):
        return "a filter bank"
    return None


def _foretold(rows: np.ndarray, order: int = 6) -> bool:
    """Whether nearly every row is foretold by its own last six values (least squares, one part in a thousand)."""
    kept = rows[np.abs(rows).max(1) > 0]
    if len(kept) < max(2, len(rows) // 2):
        return False
    good, allowed = 0, 0.1 * len(kept)
    for i, row in enumerate(kept):
        past = np.lib.stride_tricks.sliding_window_view(row, order + 1)
        coefficients, *_ = np.linalg.lstsq(past[:, :-1], past[:, -1], rcond=None)
        left = np.abs(past[:, -1] - past[:, :-1] @ coefficients).max()
        good += left <= 1e-3 * np.abs(row).max()
        if i + 1 - good > allowed:
            return False
    return True


def _filter_bank(values: np.ndarray) -> bool:
    """Mostly zeros, each row (or column) one run of positive numbers."""
    if (values < 0).any() or (values == 0).mean() < 0.7:
        return False
    for side in (values, values.T):
        mask = side > 0
        runs = (np.diff(mask.astype(np.int8), axis=1) == 1).sum(1) + mask[:, 0]
        if (runs <= 1).all():
            return True
    return False
