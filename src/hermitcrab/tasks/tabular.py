"""What both tasks on tables share: how a record becomes tensors, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.ledger import Ledger
from hermitcrab.tasks import tables
from hermitcrab.tasks.base import BaseTask

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

PROBES = 64


class Tabular(BaseTask):
    formats = ("tabular",)

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        return {**super().fit(rows, base, path), "columns": tables.fit(rows)}

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        super().check_fitted(fitted, where)
        tables.check(fitted["columns"], where)

    @classmethod
    def learnt_features(cls, train: pa.Table, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N, D] and [M, D]: scaled, missing ones marked, categories one-hot, fitted on the first alone."""
        columns = tables.fit(train)
        first, second = (tables.one_hot(tables.encode(part, columns), columns) for part in (train, rows))
        return first, second

    @classmethod
    def plain_features(cls, train: pa.Table, *others: pa.Table) -> tuple[list[np.ndarray], list[int]]:
        """Cells as they are, float64 with NaN where one is missing, of each table; and which columns are codes of categories."""
        columns = tables.fit(train)
        made = [tables.plain(part, columns) for part in (train, *others)]
        return [cells for cells, _ in made], made[0][1]

    def tensors(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        import torch

        cells = tables.encode(rows, self.fitted["columns"])
        return {name: torch.from_numpy(getattr(cells, name)) for name in ("number", "missing", "category")}

    def read(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """What the net gives: [B, K]."""
        return model(batch["number"], batch["missing"], batch["category"])

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[Any, dict[str, Any]]:
        cells = tables.encode(rows, self.fitted["columns"])
        ledger.change("missing number", int(cells.missing.sum()))
        ledger.change("unknown category", int((cells.category == 0).sum()))
        return super().examples(rows, ledger)

    def probe_rows(self) -> list[dict[str, Any]]:
        return [{"record": json.dumps(record)} for record in tables.probes(self.fitted["columns"], PROBES)]

    def answer(self, model: nn.Module, inputs: list[Any], part: Any) -> list[dict[str, Any]]:
        told = super().answer(model, inputs, part)
        changed = [tables.changed(json.loads(text), self.fitted["columns"]) for text in inputs]
        return [{**one, "changed": what} for one, what in zip(told, changed, strict=True)]
