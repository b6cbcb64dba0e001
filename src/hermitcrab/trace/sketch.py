"""A model in a small file: the first rows of what reads the stream, enough for the exact tests of `--sample`.

A sketch is a safetensors file of its own (bfloat16) whose metadata holds the roles, the layout of the heads and the digest of
the weights' files. Rows are the first ones, fixed in advance, so tests on them are as exact as on all; what needs columns
(`down`, `output`) or whole neurons (alignment, kind of relation) is not in it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import Weights
from hermitcrab.trace.compare import head_rows
from hermitcrab.trace.model import Heads, Model, open_model
from hermitcrab.trace.parts import Part, Structure

MARK = "hermitcrab.sketch"
VERSION = "1"
LARGEST = 95_000_000
MOST_ROWS = 4096
READS = ("q", "k", "v", "gate", "up")


def open_any(path: str | Path) -> Model:
    """A model's weights, or a sketch of them."""
    model = open_model(path)
    if model.weights.format == "safetensors" and MARK in model.weights.metadata:
        return _opened(model.weights, Path(path))
    return model


def _opened(weights: Weights, path: Path) -> Model:
    try:
        told = json.loads(weights.metadata[MARK])
        if told["version"] != VERSION:
            raise HermitcrabError(f"{path}: is a sketch of version {told['version']}; expected {VERSION}")
        parts = [
            Part(p["role"], p["layer"], p["tensor"], (int(p["shape"][0]), int(p["shape"][1])), expert=p["expert"])
            for p in told["parts"]
        ]
        facts, heads = told["facts"], Heads(**told["heads"])
        structure = Structure(parts, gains={(-1, 0): ""} if facts["gains"] else {}, layers=int(facts["layers"]), width=int(facts["width"]),
                              gated=bool(facts["gated"]), centered=bool(facts["centered"]), sure_gate=bool(facts["sure_gate"]),
                              learned_positions=bool(facts["learned_positions"]), how="sketch")  # fmt: skip
        for p in parts:
            if weights.info(p.tensor).shape != (min(told["rows"], p.shape[0]), p.shape[1]):
                raise HermitcrabError(f"{path}: tensor `{p.tensor}` is not as the sketch says; it was changed")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HermitcrabError(f"{path}: the sketch's own description is damaged ({type(error).__name__})") from error
    model = Model(path, weights, structure, heads, weights.opened())
    model.parts = {p.key: p for p in parts}
    model.limit = int(told["rows"])
    return model


def sketch(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Write the sketch of a model; returns what it holds.

    Raises:
        HermitcrabError: no blocks were recognized in the model, or the target cannot be written.
    """
    from hermitcrab.digest import digest_file
    from hermitcrab.store import write_atomic

    with open_model(source) as model:
        parts = [p for p in model.structure.parts if p.role in READS]
        if not parts:
            raise HermitcrabError(
                f"{source}: no attention or feed-forward blocks were recognized, so there is nothing to sketch by"
            )
        width = sum(p.shape[1] * 2 for p in parts)
        rows = max(2, min(MOST_ROWS, LARGEST // width) // 2 * 2)
        tensors: dict[str, np.ndarray] = {}
        described = []
        for p in parts:
            name = f"{p.layer}.{p.role}.{p.expert}"
            values = np.ascontiguousarray(head_rows(model, p, rows), np.float32)
            if not np.isfinite(values).all():
                raise HermitcrabError(f"{source}: tensor `{p.tensor}` holds NaN or infinite numbers")
            tensors[name] = _bfloat16(values)
            described.append(
                {"role": p.role, "layer": p.layer, "expert": p.expert, "shape": list(p.shape), "tensor": name}
            )
        s = model.structure
        told = {
            "version": VERSION, "rows": rows, "parts": described, "heads": asdict(model.heads),
            "facts": {"layers": s.layers, "width": s.width, "gated": s.gated, "centered": s.centered, "sure_gate": s.sure_gate,
                      "learned_positions": s.learned_positions, "gains": bool(s.gains)},
            "files": {f.name: digest_file(f) for f in model.weights.files},
        }  # fmt: skip
    data = _file(tensors, told)
    write_atomic(Path(target), data)
    return {
        "sketch": str(target),
        "model": str(source),
        "bytes": len(data),
        "rows": rows,
        "matrices": len(tensors),
        "files": told["files"],
    }


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def _file(tensors: dict[str, np.ndarray], told: dict[str, Any]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {MARK: json.dumps(told, sort_keys=True)}}
    at = 0
    for name in sorted(tensors):
        size = tensors[name].nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensors[n].tobytes() for n in sorted(tensors))
