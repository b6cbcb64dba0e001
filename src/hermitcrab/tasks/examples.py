"""Examples as tensors, where batches go, and sentences that models of texts are compared on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

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


class Tensors:
    """Examples as tensors whose first dimension is the row."""

    def __init__(self, names: list[str], **columns: torch.Tensor):
        self.names, self.columns = names, columns

    def __len__(self) -> int:
        return len(self.names)

    def row_ids(self, rows: Any) -> list[str]:
        return [self.names[int(row)] for row in rows]


def place() -> Any:
    """Where batches go: this process's GPU, or the CPU."""
    import os

    import torch

    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
