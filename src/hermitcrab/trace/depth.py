"""Which layer came from which: dynamic programming over a matrix of scores, and free assignment where order was destroyed."""

from __future__ import annotations

import numpy as np

from hermitcrab.trace.compare import head_rows
from hermitcrab.trace.model import Model


def monotone(scores: np.ndarray, floor: float) -> list[int]:
    """The order-keeping path of the largest total score above `floor` (Needleman and Wunsch 1970, free gaps).

    scores: (layers of the suspect, layers of the base). Returns the base's layer for each of the suspect's, or -1.
    """
    n, m = scores.shape
    gain = np.where(np.isnan(scores), 0.0, scores - floor)
    total = np.zeros((n + 1, m + 1))
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            total[i, j] = max(total[i - 1, j - 1] + gain[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
    out, i, j = [-1] * n, n, m
    while i and j:
        if total[i, j] == total[i - 1, j]:
            i -= 1
        elif total[i, j] == total[i, j - 1]:
            j -= 1
        else:
            out[i - 1] = j - 1
            i, j = i - 1, j - 1
    return out


def layer_map(scores: np.ndarray, floor: float) -> list[int]:
    """The base's layer for each of the suspect's: the monotone path, completed by each layer's own best match.

    A layer that stands twice, or out of order, is off the monotone path; it is mapped to its best match above `floor`.
    """
    path = monotone(scores, floor)
    for i, row in enumerate(scores):
        if np.isnan(row).all():
            continue
        best = int(np.nanargmax(row))
        if row[best] >= floor and (path[i] < 0 or row[best] > 1.5 * row[path[i]]):
            path[i] = best
    return path


def by_magnitudes(suspect: Model, base: Model) -> tuple[dict[int, int], bool]:
    """Layer of the suspect → layer of the base for the exact tests, and whether it was chosen by looking at both.

    Compared are absolute values of a few rows, which no flip of signs moves, so that tests on signs stay exact. The layers
    are left as they stand unless others fit far better.
    """
    n, m = suspect.structure.layers, base.structure.layers
    plain = {i: i for i in range(min(n, m))}
    if not n or not m:
        return {}, False
    ours, theirs = _profiles(suspect), _profiles(base)
    if ours is None or theirs is None or ours.shape[1:] != theirs.shape[1:]:
        return plain, False
    scores = ours.reshape(n, -1) @ theirs.reshape(m, -1).T / ours[0].size
    noise = 1 / np.sqrt(ours[0].size)
    found = {}
    for i, row in enumerate(scores):
        j = int(row.argmax())
        here = row[i] if i < m else 0.0
        if row[j] > 0.05 + 6 * noise and row[j] > 2 * here:
            found[i] = j
        elif here > 0.05 + 6 * noise or (n == m and i < m):
            found[i] = i
    if not found or all(plain.get(i) == j for i, j in found.items()):
        return plain, False
    return found, True


ROWS, COLUMNS = 24, 256


def _profiles(model: Model) -> np.ndarray | None:
    """(layers, numbers) standardized absolute values of the first rows of what every layer has; None where layers differ."""
    roles = [r for r in ("up", "q", "k", "v", "o", "down") if (0, r, -1) in model.parts or (0, r, 0) in model.parts][:4]
    out = []
    for layer in range(model.structure.layers):
        row = []
        for role in roles:
            part = model.parts.get((layer, role, -1)) or model.parts.get((layer, role, 0))
            if part is None:
                return None
            x = np.abs(head_rows(model, part, ROWS)[:, :COLUMNS])
            if not np.isfinite(x).all():
                return None
            x = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
            row.append((x / max(float(x.std()), 1e-12)).ravel())
        out.append(np.concatenate(row))
    return np.stack(out) if out and len({len(o) for o in out}) == 1 else None
