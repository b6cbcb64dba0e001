"""An `mlp` on the columns of a table: numbers, marks where one is missing, and categories one-hot, side by side.

Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0. Its configuration is that of an `mlp` on pixels.

Shapes: B rows, F columns of numbers, G columns of categories, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}


class TabularMLP(nn.Module):
    def __init__(self, config: dict[str, Any], numbers: int, categories: Sequence[int], outputs: int):
        """`categories`: how many values each column of categories has, the unknown one included."""
        super().__init__()
        self.categories = list(categories)
        sizes = [2 * numbers + sum(categories), *config["hidden_sizes"]]
        layers: list[nn.Module] = []
        for taken, given in pairwise(sizes):
            layers += [nn.Linear(taken, given), LAYERS[config["activation"]]()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, number_BF: torch.Tensor, missing_BF: torch.Tensor, category_BG: torch.Tensor) -> torch.Tensor:
        """-> [B, K]."""
        hot = [F.one_hot(category_BG[:, i], size).to(number_BF) for i, size in enumerate(self.categories)]
        return self.head(self.layers(torch.cat([number_BF, missing_BF, *hot], dim=1)))
