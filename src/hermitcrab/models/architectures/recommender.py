"""matrix-factorization and two-tower: a user and an item as vectors, whose product says how likely the one takes the other.

Ratings are predicted with biases (Koren, Bell & Volinsky 2009, doi:10.1109/MC.2009.263), what is taken next by a softmax over all items
(Covington et al. 2016, doi:10.1145/2959100.2959190, without sampling: catalogs here are small). A two-tower model adds to an
item's vector those of its content, so an item that nobody has rated has one too; an item's own vector is left out now and then, so that
content learns to stand alone (Volkovs, Yu & Poutanen 2017, "DropoutNet").

Shapes: B rows, I items, T tokens of content, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Recommender(nn.Module):
    def __init__(self, config: dict[str, Any], users: int, items: int, tokens: int, mean: float):
        """Whom or what nobody knows has a vector of zeros, and stands behind the tables."""
        super().__init__()
        width = config["hidden_size"]
        self.content = config["model_type"] == "two-tower" and tokens > 0
        self.dropout, self.mean = config["dropout"], mean
        self.user, self.item = (self._table(count, width) for count in (users, items))
        self.user_rating, self.item_rating = (self._table(count, width) for count in (users, items))
        self.user_bias, self.item_bias, self.item_taken = (
            nn.Parameter(torch.zeros(count)) for count in (users, items, items)
        )
        if self.content:
            self.tokens, self.tokens_rating = self._table(tokens, width), self._table(tokens, width)
            self.token_bias, self.token_taken = nn.Parameter(torch.zeros(tokens)), nn.Parameter(torch.zeros(tokens))

    @staticmethod
    def _table(rows: int, width: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(rows, width) * 0.1)

    def _known(self, table: torch.Tensor, more: int) -> torch.Tensor:
        """The table, and below it zeros for so many that nobody knows."""
        return torch.cat([table, table.new_zeros(more, *table.shape[1:])])

    def _of_users(self, table: torch.Tensor, user_B: torch.Tensor) -> torch.Tensor:
        return self._known(table, 1)[user_B]  # -1 is the last row

    def forward(
        self, user_B: torch.Tensor, item_B: torch.Tensor, hot_IT: torch.Tensor, asked_G: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the users of the asked rows take [G, I], and the ratings of all rows [B]."""
        return self.taken(user_B[asked_G], hot_IT), self.rating(user_B, item_B, hot_IT)

    def taken(self, user_B: torch.Tensor, hot_IT: torch.Tensor) -> torch.Tensor:
        """Scores of all items, those of `hot_IT` beyond the known ones included: [B, I]."""
        more = len(hot_IT) - len(self.item)
        item_ID, bias_I = self._known(self.item, more), self._known(self.item_taken, more)
        if self.content:
            if self.training and self.dropout:
                kept_I1 = (torch.rand(len(item_ID), 1) >= self.dropout).to(item_ID)
                item_ID, bias_I = item_ID * kept_I1, bias_I * kept_I1[:, 0]
            item_ID, bias_I = item_ID + hot_IT @ self.tokens, bias_I + hot_IT @ self.token_taken
        return self._of_users(self.user, user_B) @ item_ID.T + bias_I

    def rating(self, user_B: torch.Tensor, item_B: torch.Tensor, hot_IT: torch.Tensor) -> torch.Tensor:
        """Predicted ratings: [B]."""
        more = len(hot_IT) - len(self.item)
        item_BD, bias_B = self._known(self.item_rating, more)[item_B], self._known(self.item_bias, more)[item_B]
        if self.content:
            item_BD = item_BD + hot_IT[item_B] @ self.tokens_rating
            bias_B = bias_B + hot_IT[item_B] @ self.token_bias
        product_B = (self._of_users(self.user_rating, user_B) * item_BD).sum(-1)
        return self.mean + self._of_users(self.user_bias, user_B) + bias_B + product_B
