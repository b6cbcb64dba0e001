"""ft-transformer: a table's columns as tokens, a Transformer over them (Gorishniy et al. 2021, arXiv:2106.11959, section 3.3).

Pre-norm blocks whose first attention has no norm before it, ReGLU in between, and a class token whose last state is read.

Shapes: B rows, F columns of numbers, G columns of categories, T = 1 + F + G tokens, D width, H heads, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Tokens(nn.Module):
    """A token for each column: of a number, a vector times it plus one of its own, and another where it is missing."""

    def __init__(self, numbers: int, categories: Sequence[int], width: int):
        super().__init__()
        bound = 1 / math.sqrt(width)

        def table(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, width).uniform_(-bound, bound))

        self.weight, self.missing, self.bias = table(numbers), table(numbers), table(numbers + len(categories))
        self.first, self.values = table(1), table(sum(categories))
        starts = torch.tensor([0, *categories], dtype=torch.int64).cumsum(0)[:-1]
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, number_BF: torch.Tensor, missing_BF: torch.Tensor, category_BG: torch.Tensor) -> torch.Tensor:
        """-> [B, T, D]."""
        of_numbers_BFD = number_BF[..., None] * self.weight + missing_BF[..., None] * self.missing
        of_categories_BGD = F.embedding(category_BG + self.starts, self.values)
        found_BTD = torch.cat([of_numbers_BFD, of_categories_BGD], dim=1) + self.bias
        return torch.cat([self.first.expand(len(found_BTD), 1, -1), found_BTD], dim=1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, dropout: float, first: bool):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention = nn.Identity() if first else nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.before_inner = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        b, t, d = x_BTD.shape
        qkv = self.qkv(self.before_attention(x_BTD)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).reshape(b, t, d)
        x_BTD = x_BTD + self.out(mixed)
        value, gate = self.up(self.before_inner(x_BTD)).chunk(2, dim=-1)
        inner = F.dropout(value * F.relu(gate), self.dropout, self.training)
        return x_BTD + self.down(inner)


class FTTransformer(nn.Module):
    def __init__(self, config: dict[str, Any], numbers: int, categories: Sequence[int], outputs: int):
        """`categories`: how many values each column of categories has, the unknown one included."""
        super().__init__()
        width = config["hidden_size"]
        self.tokens = Tokens(numbers, categories, width)
        self.blocks = nn.Sequential(*(
            Block(width, config["num_attention_heads"], config["intermediate_size"], config["dropout"], number == 0)
            for number in range(config["num_hidden_layers"])
        ))  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, number_BF: torch.Tensor, missing_BF: torch.Tensor, category_BG: torch.Tensor) -> torch.Tensor:
        """-> [B, K]."""
        x_BTD = self.blocks(self.tokens(number_BF, missing_BF, category_BG))
        return self.head(F.relu(self.norm(x_BTD[:, 0])))
