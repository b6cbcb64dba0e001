"""Examples by row, texts of their own lengths in batches, where batches go, and sentences that models of texts are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

GROUPS, FEWEST = 4, 4  # of a batch, by length; rows of a group
SENTENCES = (
    "The ferry leaves the harbor at six, and by seven the mountains are out of sight.",
    "def area(width, height):\n    return width * height",
    "I had expected more from this film: the story is thin, but the two leads carry it well.",
    "Water boils at a lower temperature on a mountain because the air pressure there is lower.",
    "Please send the signed contract back to us before Friday, together with a copy of the invoice.",
    "寄居蟹住在别的动物留下的壳里，没有谁会因此责怪它。",
    "If 3 apples cost 2 dollars, then 12 apples cost 8 dollars.",
    "El tren de las nueve llegó tarde otra vez y nadie en el andén parecía sorprendido.",
)
"""What texts are compared on: of our own, so that no row of anybody's data enters a package."""


class Named:
    """Examples that are one a row: `names` are row ids."""

    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def row_ids(self, rows: Any) -> list[str]:
        return [self.names[int(row)] for row in rows]


class Tensors(Named):
    """Examples as tensors whose first dimension is the row."""

    def __init__(self, names: list[str], **columns: torch.Tensor):
        self.names, self.columns = names, columns


def alike(lengths: Sequence[Any]) -> list[np.ndarray]:
    """Rows of a batch in a few groups of like length, which are computed apart: next to nothing is then computed for padding."""
    order = np.array(sorted(range(len(lengths)), key=lambda i: (lengths[i], i)), np.int64)
    return np.array_split(order, max(1, min(GROUPS, len(order) // FEWEST)))


def padded(ids: Sequence[Sequence[int] | np.ndarray], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of their own lengths as one tensor, filled up behind, and 1 where something stood: int64 [B, L] both."""
    longest = max(map(len, ids))
    table_BL, mask_BL = np.full((len(ids), longest), fill, np.int64), np.zeros((len(ids), longest), np.int64)
    for row, one in enumerate(ids):
        table_BL[row, : len(one)], mask_BL[row, : len(one)] = one, 1
    return tensor(table_BL), tensor(mask_BL)


def tensor(values: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(values).to(place())


def place() -> Any:
    """Where batches go: this process's GPU, or the CPU."""
    import os

    import torch

    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
