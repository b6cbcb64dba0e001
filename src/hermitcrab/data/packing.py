"""Documents into rows of one length: best-fit decreasing, no document cut, none touching its neighbor.

Reference: Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (arXiv:2404.10830), section 3: best-fit bin packing.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

IGNORE = -100  # the label of a token that is not learnt, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Document:
    """One example as tokens: `ids` (int32, shape [L]) and which of them are learnt (`learn`, bool, shape [L])."""

    row_id: str
    ids: np.ndarray
    learn: np.ndarray


@dataclass(frozen=True)
class Packed:
    """Rows of `length` tokens.

    Attributes:
        ids_RL: int32, padded with `pad`.
        labels_RL: int64; the label of position t is token t + 1 of the same document, or IGNORE.
        positions_RL: int32; they start at 0 with every document, which is what tells documents apart.
        rows: the row ids of the documents in each packed row.
    """

    ids_RL: np.ndarray
    labels_RL: np.ndarray
    positions_RL: np.ndarray
    rows: list[list[str]]
    fill: float

    def __len__(self) -> int:
        return len(self.rows)


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` by bin: longest first, each into the fullest bin that still has room. Deterministic."""
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        size = lengths[index]
        if size > capacity:
            raise ValueError(f"a document of {size} tokens does not fit into rows of {capacity}")
        at = bisect.bisect_left(free, (size, -1))
        if at == len(free):
            bins.append([index])
            room, number = capacity, len(bins) - 1
        else:
            room, number = free.pop(at)
            bins[number].append(index)
        bisect.insort(free, (room - size, number))
    return bins


def pack(documents: list[Document], length: int, pad: int) -> Packed:
    """Pack documents (each of at most `length` tokens) into rows of `length`."""
    bins = best_fit([len(d.ids) for d in documents], length)
    ids_RL = np.full((len(bins), length), pad, np.int32)
    labels_RL = np.full((len(bins), length), IGNORE, np.int64)
    positions_RL = np.zeros((len(bins), length), np.int32)
    for row, members in enumerate(bins):
        at = 0
        for index in members:
            document = documents[index]
            n = len(document.ids)
            ids_RL[row, at : at + n] = document.ids
            labels_RL[row, at : at + n - 1] = np.where(document.learn[1:], document.ids[1:], IGNORE)
            positions_RL[row, at : at + n] = np.arange(n)
            at += n
        positions_RL[row, at:] = np.arange(length - at)  # the padding is a document of its own that nobody reads
    used = sum(len(d.ids) for d in documents)
    return Packed(ids_RL, labels_RL, positions_RL, [[documents[i].row_id for i in b] for b in bins],
                  used / max(1, ids_RL.size))  # fmt: skip


def step_rows(count: int, per_step: int, step: int, seed: int) -> np.ndarray:
    """Which of `count` rows optimizer step `step` takes: a pure function, so a resumed run goes on where it was.

    Epoch after epoch, each in an order of its own (Philox keyed by seed and epoch), cut into steps of `per_step`.
    """
    epoch, start = divmod(step * per_step, count)
    rows = epoch_order(count, seed, epoch)[start : start + per_step].copy()
    while len(rows) < per_step:  # the step reaches into the next epoch, or over several small ones
        epoch += 1
        rows = np.concatenate([rows, epoch_order(count, seed, epoch)[: per_step - len(rows)]])
    return rows


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of one epoch in its order; of the last two epochs asked for, without drawing again."""
    order = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), epoch])).permutation(count)
    order.flags.writeable = False
    return order
