"""tabular-regression: a record of numbers and categories in, a number out. Targets are learnt on the scale of the training rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import Evaluate
from hermitcrab.tasks import Loss, tables
from hermitcrab.tasks.tabular import Tabular

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn


class TabularRegression(Tabular):
    name = "tabular-regression"
    metrics = ("root_mean_squared_error", "mean_absolute_error", "r2")
    baselines = ("mean", "linear-regression", "lightgbm-regressor")
    fitted_as = {"columns": list, "mean": float, "std": float}  # noqa: RUF012

    @classmethod
    def check_rows(cls, part: Evaluate, splits: Mapping[str, pa.Table]) -> None:
        """Every target is a number, and those of the training rows are not all the same."""
        for name, rows in splits.items():
            for row, target in zip(rows["row_id"].to_pylist(), rows["target"].to_pylist(), strict=True):
                if not _is_number(target):
                    raise HermitcrabError(
                        f"{name} rows: row {row}: expected a number as its target. Received: {target[:40]!r}"
                    )
        if len(set(cls.answers(splits["train"]))) < 2:
            raise HermitcrabError("the training rows have one target; expected at least two to learn from")
        tables.fit(splits["train"])

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        target_N = np.array(cls.answers(rows))
        return {**super().fit(rows, base, path), "mean": float(target_N.mean()), "std": float(target_N.std()) or 1.0}

    @classmethod
    def answers(cls, rows: pa.Table) -> list[float]:
        return [float(target) for target in rows["target"].to_pylist()]

    @classmethod
    def build(cls, configuration: dict[str, Any], fitted: dict[str, Any]) -> nn.Module:
        return tables.build(configuration, fitted["columns"], 1)

    def targets(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        import torch

        scaled_N = (np.array(self.answers(rows)) - self.fitted["mean"]) / self.fitted["std"]
        return {"target": torch.tensor(scaled_N, dtype=torch.float32)}

    def outputs(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return self.read(model, batch)[:, 0].float()

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Squared errors, in units of the training targets' spread."""
        return Loss((self.outputs(model, batch) - batch["target"]).square().sum(), self.count(batch))

    def columns(self, outputs: torch.Tensor, rows: pa.Table) -> dict[str, list[Any]]:
        return {"prediction": (outputs.double() * self.fitted["std"] + self.fitted["mean"]).tolist()}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
