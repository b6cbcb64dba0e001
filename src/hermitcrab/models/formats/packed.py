"""Four-bit matrices of GPTQ and AWQ as one tensor each.

Both keep a matrix as `STEM.qweight`, `STEM.qzeros` and `STEM.scales`: whole numbers of four (GPTQ: also two or eight) bits,
several in an int32, with a scale and a zero point for each output and group of inputs. GPTQ packs along the inputs, its
`g_idx` says to which group an input belongs, and its zero points are stored less one unless the configuration says
`gptq_v2`; AWQ packs along the outputs, eight in the order 0 2 4 6 1 3 5 7. Layouts as AutoGPTQ and AutoAWQ write them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.weights import TensorInfo, Weights

AWQ_ORDER = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])
KINDS = {f"{kind}{bits}": bits for kind in ("GPTQ", "AWQ") for bits in (2, 4, 8)}
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def unpacked(weights: Weights) -> Weights:
    """`weights` in which each packed matrix stands as `STEM.weight`, (out, in) float32; itself where there is none."""
    if weights.format != "safetensors":
        return weights
    tensors = dict(weights.tensors)
    less = 0 if _second_version(weights.path) else 1
    for name, info in weights.tensors.items():
        stem = name.removesuffix(".qweight")
        if stem == name or f"{stem}.weight" in tensors:
            continue
        made = _matrix(weights, stem, info)
        if made is not None:
            for part in PARTS:
                tensors.pop(f"{stem}.{part}", None)
            tensors[made.name] = made
    if len(tensors) == len(weights.tensors):
        return weights

    def decode(info: TensorInfo, raw: np.ndarray) -> np.ndarray:
        return _values(weights, info, raw, less) if info.dtype in KINDS else weights.decode(info, raw)

    return replace(weights, tensors=tensors, decode=decode)


def _second_version(path: Path) -> bool:
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        if config.is_symlink() or config.stat().st_size > 1 << 24:
            return False
        told = json.loads(config.read_text(encoding="utf-8", errors="replace"))
        return bool(told["quantization_config"]["checkpoint_format"] == "gptq_v2")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _matrix(weights: Weights, stem: str, packed: TensorInfo) -> TensorInfo | None:
    """The matrix that a packed tensor stands for; None where its companions are missing or of other shapes."""
    zeros, scales = (weights.tensors.get(f"{stem}.{part}") for part in ("qzeros", "scales"))
    if zeros is None or scales is None or packed.dtype != "I32" or zeros.dtype != "I32":
        return None
    if any(len(t.shape) != 2 or 0 in t.shape for t in (packed, zeros, scales)) or scales.dtype not in (
        "F16",
        "BF16",
        "F32",
    ):
        return None
    groups, out = scales.shape
    if zeros.shape[0] != groups or out % zeros.shape[1]:
        return None
    many = out // zeros.shape[1]
    if many not in (4, 8, 16):
        return None
    if packed.shape[1] == out:
        kind, inner = "GPTQ", packed.shape[0] * many
        index = weights.tensors.get(f"{stem}.g_idx")
        if index is not None and (index.shape != (inner,) or index.dtype != "I32"):
            return None
    elif packed.shape[1] * many == out and many == 8:
        kind, inner = "AWQ", packed.shape[0]
    else:
        return None
    if inner % groups and f"{stem}.g_idx" not in weights.tensors:
        return None
    return replace(packed, name=f"{stem}.weight", dtype=f"{kind}{32 // many}", shape=(out, inner))


def _nibbles(x: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """(rows, columns) int32 with each number's parts one behind another along `axis`, lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    parts = (x.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    rows, columns = x.shape
    parts = parts.transpose(0, 2, 1) if axis == 0 else parts
    return parts.reshape((-1, columns) if axis == 0 else (rows, -1)).astype(np.int16)


def _values(weights: Weights, info: TensorInfo, raw: np.ndarray, less: int) -> np.ndarray:
    stem, bits = info.name.removesuffix(".weight"), KINDS[info.dtype]
    out, inner = info.shape
    zeros, scales = weights.read(f"{stem}.qzeros"), weights.read(f"{stem}.scales").astype(np.float32)
    if info.dtype.startswith("GPTQ"):
        numbers = _nibbles(raw.view(np.int32).reshape(-1, out), bits, 0)
        points = _nibbles(zeros, bits, 1) + less
        has_index = f"{stem}.g_idx" in weights.tensors
        group = weights.read(f"{stem}.g_idx") if has_index else np.arange(inner) // (inner // len(scales))
    else:
        order = (np.arange(out).reshape(-1, 8)[:, AWQ_ORDER]).ravel()
        numbers = _nibbles(raw.view(np.int32).reshape(inner, -1), bits, 1)[:, order]
        points = _nibbles(zeros, bits, 1)[:, order]
        group = np.arange(inner) // (inner // len(scales))
    if group.min() < 0 or group.max() >= len(scales):
        raise HermitcrabError(f"{info.file}: `{stem}.g_idx` names a group that `{stem}.scales` does not have")
    return np.ascontiguousarray(((numbers - points[group]) * scales[group]).T, np.float32)
