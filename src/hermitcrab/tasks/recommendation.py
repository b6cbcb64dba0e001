"""recommendation: who takes what, and how they rate it. A row is an interaction: user, item, rating, time, features of the item.

Notable:
- Two things are learnt at once: which of all items a user takes next (a softmax over the whole catalog, of rows that were liked), and
  the rating of a row (squared error). A row without a rating is liked.
- A test item's place is told among all items but those that its user has in training rows; users are the groups that are resampled.
- An item that no training row has is ranked by its content, and counted apart (`cold_recall@10`).

Shapes: B rows, I items, T tokens of content.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Evaluate
from hermitcrab.tasks import Asking, Loss, catalog
from hermitcrab.tasks.base import BaseTask

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

TOLD = 10  # items that a user is recommended
PROBES = 32
NETS = ("matrix-factorization", "two-tower")


class Recommendation(BaseTask):
    name = "recommendation"
    formats = ("interaction",)
    metrics = ("ndcg@10", "recall@10", "cold_recall@10", "root_mean_squared_error")
    baselines = ("popularity", "item-knn", "implicit-als")
    fitted_as = {  # noqa: RUF012
        "users": list, "items": list, "tokens": list, "edges": dict, "content": list, "seen": list,
        "relevant": (float, type(None)), "mean": float,
    }  # fmt: skip

    @classmethod
    def check_rows(cls, part: Evaluate, splits: Mapping[str, pa.Table]) -> None:
        for what in ("user", "item"):
            if len(set(splits["train"][what].to_pylist())) < 2:
                raise HermitcrabError(f"training rows have one {what}; expected at least two, to tell them apart")

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        return catalog.fit(rows)

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        super().check_fitted(fitted, where)
        catalog.check(fitted, where)

    @classmethod
    def build(cls, configuration: dict[str, Any], fitted: dict[str, Any]) -> nn.Module:
        from hermitcrab.models.architectures.recommender import Recommender

        if configuration["model_type"] not in NETS:
            raise HermitcrabError(
                f"base.architecture: expected {' or '.join(NETS)}. Received: {configuration['model_type']}"
            )
        users, items, tokens = (len(fitted[key]) for key in ("users", "items", "tokens"))
        return Recommender(configuration, users, items, tokens, fitted["mean"])

    @classmethod
    def answers(cls, rows: pa.Table) -> list[float | None]:
        return rows["rating"].to_pylist()

    # For baselines, which rank the same items for the same users.

    @classmethod
    def positions_of(cls, rows: pa.Table, fitted: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Places of users and items in what was fitted; -1 of whom or what nobody knows."""
        who, what = ({name: i for i, name in enumerate(fitted[key])} for key in ("users", "items"))
        users = [who.get(catalog.name_of(user), -1) for user in rows["user"].to_pylist()]
        return np.array(users), np.array([what.get(item, -1) for item in rows["item"].to_pylist()])

    @classmethod
    def judged(cls, rows: pa.Table, fitted: dict[str, Any], score: Any) -> dict[str, list[Any]]:
        return catalog.judged(rows, fitted, score)

    def places(self, rows: pa.Table, made: catalog.Catalog) -> dict[str, torch.Tensor]:
        import torch

        who = {user: i for i, user in enumerate(self.fitted["users"])}
        user = [who.get(catalog.name_of(user), -1) for user in rows["user"].to_pylist()]
        item = [made.place[item] for item in rows["item"].to_pylist()]
        return {"user": torch.tensor(user, dtype=torch.int64), "item": torch.tensor(item, dtype=torch.int64)}

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[Any, dict[str, Any]]:
        import torch

        from hermitcrab.tasks.base import Tensors

        known = catalog.catalog(self.fitted)
        kept = [item in known.place for item in rows["item"].to_pylist()]  # validation rows may bring others
        ledger.take(rows.num_rows)
        ledger.keep(sum(kept))
        ledger.drop("item that no training row has", rows.num_rows - sum(kept))
        rows = rows.filter(kept)
        rating = np.array([math.nan if r is None else r for r in rows["rating"].to_pylist()], np.float32)
        relevant = self.fitted["relevant"]
        liked = np.isnan(rating) | (rating >= (relevant if relevant is not None else -np.inf))
        ledger.change("without a rating", int(np.isnan(rating).sum()))
        columns = {"rating": torch.from_numpy(rating), "liked": torch.from_numpy(liked)}
        return Tensors(rows["row_id"].to_pylist(), **self.places(rows, known), **columns), {
            "learnt": rows.num_rows, "liked": int(liked.sum()), "users": len(self.fitted["users"]), "items": len(self.fitted["items"]),
        }  # fmt: skip

    def summary(self, entry: Mapping[str, Any]) -> str:
        return f"{super().summary(entry)}, {entry['liked']:,} liked; {entry['users']:,} users, {entry['items']:,} items"

    @property
    def hot(self) -> torch.Tensor:
        import torch

        if not hasattr(self, "_hot"):
            self._hot = torch.from_numpy(catalog.catalog(self.fitted).hot_IT)
        return self._hot

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Nats of the item that was taken, among all items, where it was liked; and the squared error of its rating."""
        import torch
        import torch.nn.functional as F

        good_B = batch["liked"].nonzero()[:, 0]  # the softmax is most of the work, and the others have no part in it
        taken_GI, rating_B = model(batch["user"], batch["item"], self.hot, good_B)
        nats_B = F.cross_entropy(taken_GI.float(), batch["item"][good_B], reduction="none")
        known_B = ~batch["rating"].isnan()
        error_B = torch.where(known_B, rating_B.float() - batch["rating"], 0.0)
        return Loss(nats_B.sum() + error_B.square().sum(), self.count(batch))

    def predict(self, model: nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
                batch_size: int | None = None) -> pa.Table:  # fmt: skip
        """The rating, and the item's place among all that its user has not seen."""
        import pyarrow as pa
        import torch

        model.eval()
        made = catalog.catalog(self.fitted, catalog.contents(rows))
        weight = next(model.parameters())
        hot_IT = torch.from_numpy(made.hot_IT).to(weight)
        with torch.inference_mode():
            found = self.places(rows, made)
            size = batch_size or part.batch_size
            parts = zip(found["user"].split(size), found["item"].split(size), strict=True)
            said = [model.rating(users, items, hot_IT).double() for users, items in parts]
            told = catalog.judged(
                rows, self.fitted, lambda user, _: model.taken(torch.tensor([user]), hot_IT)[0].float().numpy()
            )
        has_ratings = self.fitted["relevant"] is not None
        prediction = torch.cat(said).tolist() if has_ratings and said else [None] * rows.num_rows
        return pa.table({
            "row_id": rows["row_id"], "reference": pa.array(self.answers(rows), pa.float64()),
            "prediction": pa.array(prediction, pa.float64()), "score": pa.array([None] * rows.num_rows, pa.float64()),
            **{**told, "cold_rank": pa.array(told["cold_rank"], pa.int64())},
        }).replace_schema_metadata({"prompt_digest": self.asked(rows, part)})  # fmt: skip

    # Using it

    @classmethod
    def read_inputs(cls, words: Sequence[str], column: str) -> list[Any]:
        """Each `{"user": …}`: what it would take next; with `item` (and its `features`), how it would rate that."""
        from hermitcrab.tasks.inputs import jsons

        found = jsons(words)
        for number, text in enumerate(found, 1):
            record = json.loads(text)
            if not isinstance(record, dict) or "user" not in record:
                wanted = '{"user": "7"} or {"user": "7", "item": "31"}'
                raise UsageError(f"input {number:,}: expected such as {wanted}. Received: {text[:80]}")
        return found

    def answer(self, model: nn.Module, inputs: list[Any], part: Asking) -> list[dict[str, Any]]:
        import torch

        model.eval()
        with torch.inference_mode():
            return [self._answer(model, text) for text in inputs]

    def _answer(self, model: nn.Module, text: str) -> dict[str, Any]:
        import torch

        record = json.loads(text)
        item = None if record.get("item") is None else str(record["item"])
        made = catalog.catalog(self.fitted, {} if item is None else {item: record.get("features") or {}})
        name = catalog.name_of(str(record["user"]))
        user = self.fitted["users"].index(name) if name in self.fitted["users"] else -1
        changed = [] if user >= 0 else ["the user is not known: what everybody takes"]
        hot_IT = torch.from_numpy(made.hot_IT).to(next(model.parameters()))
        who = torch.tensor([user])
        if item is not None:
            if item not in self.fitted["items"]:
                changed.append("the item is not known: by its content")
            rating = float(model.rating(who, torch.tensor([made.place[item]]), hot_IT)[0])
            return {"input": text, "prediction": rating, "score": None, "changed": changed}
        score_I = model.taken(who, hot_IT)[0].double().log_softmax(-1)
        score_I[self.fitted["seen"][user] if user >= 0 else []] = -math.inf
        best = score_I.topk(min(TOLD, len(score_I)))
        known = [(i, s) for i, s in zip(best.indices.tolist(), best.values.tolist(), strict=True) if math.isfinite(s)]
        return {
            "input": text, "prediction": [made.items[i] for i, _ in known], "score": known[0][1] if known else None,
            "scores": {made.items[i]: score for i, score in known}, "changed": changed,
        }  # fmt: skip

    def probes(self) -> list[Any]:
        """Places of users in the tables, and nobody beyond them."""
        return [*range(min(PROBES, len(self.fitted["users"]))), -1]

    def probe_outputs(self, model: nn.Module, probes: list[Any]) -> torch.Tensor:
        """Scores of the first items for each user: [N, I]."""
        import torch

        model.eval()
        users = torch.tensor(probes, dtype=torch.int64)
        with torch.inference_mode():
            taken_NI = model.taken(users, self.hot)[:, :256]
            items = torch.zeros_like(users)
            return torch.cat([taken_NI, model.rating(users, items, self.hot)[:, None]], dim=1).float().cpu()
