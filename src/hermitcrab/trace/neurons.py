"""Neurons: what opens each, what it carries, what it writes, and how two sets of them are compared.

g, u, d: what opens a neuron, what it carries, what it writes: rows of (neurons, width), gains folded in
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hermitcrab.trace.model import Model


@dataclass
class Block:
    """One MLP (or one expert). Arrays (neurons, width) float32; `gate` None where neurons are not gated."""

    layer: int
    expert: int
    gate: np.ndarray | None
    up: np.ndarray
    down: np.ndarray

    @property
    def opens(self) -> np.ndarray:
        return self.up if self.gate is None else self.gate

    def vectors(self) -> list[np.ndarray]:
        return [self.up, self.down] if self.gate is None else [self.gate, self.up, self.down]


def blocks(model: Model) -> list[Block]:
    """Every MLP with gains folded into what reads the stream; means removed where the norms remove them."""
    out = []
    s = model.structure
    keys = sorted({(p.layer, p.expert) for p in s.parts if p.role == "down"})
    for layer, expert in keys:
        up, down, gate = (model.parts.get((layer, role, expert)) for role in ("up", "down", "gate"))
        if up is None or down is None:
            continue
        gain = model.gain(layer, 1)
        vectors: list[np.ndarray | None] = []
        for part in (gate, up, down):
            if part is None:
                vectors.append(None)
                continue
            x = np.array(model.matrix(part), np.float32)
            x = x.T if part is down else x
            if part is not down and gain is not None and len(gain) == x.shape[1]:
                x = x * gain.astype(np.float32)
            if s.centered:
                x = x - x.mean(1, keepdims=True)
            vectors.append(np.ascontiguousarray(x))
        if any(v is not None and not np.isfinite(v).all() for v in vectors):
            continue
        if vectors[1] is not None and vectors[2] is not None and vectors[1].any() and vectors[2].any():
            out.append(Block(layer, expert, vectors[0], vectors[1], vectors[2]))
    return out


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def polar(m: np.ndarray) -> np.ndarray:
    """The orthogonal (or partly isometric) factor: argmax over R of <R, m> (Schönemann 1966)."""
    if not np.isfinite(m).all():
        return np.eye(*m.shape, dtype=np.float32)
    u, _, v = np.linalg.svd(m.astype(np.float64), full_matrices=False)
    return (u @ v).astype(np.float32)


def views(mine: list[np.ndarray], other: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two similarities (neurons, neurons) that share no weights; signs of gated neurons cancel in the second."""
    if len(mine) == 2:
        return mine[0] @ other[0].T, mine[1] @ other[1].T
    return mine[0] @ other[0].T, (mine[1] @ other[1].T) * (mine[2] @ other[2].T)
