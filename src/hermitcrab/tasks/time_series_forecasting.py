"""time-series-forecasting: what a series does next, with an interval. A row is an origin: `past`, and the `future` that came after it.

Notable:
- The model is PatchTST (Nie et al. 2023, arXiv:2211.14730) of transformers, which scales each past by its own mean and spread; its
  head gives three quantiles a step, learnt by the quantile loss in units of the series' own steps.
- Whether a forecast is of use is told beside the last value: the price of a stock is nearly a random walk, and what the last value does
  not know, hardly any model does.

Shapes: N rows, B batch, C values of the past, H steps ahead, Q quantiles.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Evaluate, Recipe
from hermitcrab.tasks import Loss
from hermitcrab.tasks.base import BaseTask

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

LEVELS = (0.1, 0.5, 0.9)  # as `evaluate.forecasts` reads them
PROBES = 24
SMALLEST = 1e-8  # of a scale: a series that never moved


class TimeSeriesForecasting(BaseTask):
    name = "time-series-forecasting"
    formats = ("series",)
    kind = "TIME_SERIES_PREDICTION"
    metrics = ("mase", "scaled_quantile_loss", "coverage")
    baselines = ("naive", "seasonal-naive", "auto-ets", "auto-arima")
    fitted_as = {"context": int, "horizon": int, "scales": dict}  # noqa: RUF012

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        super().check(recipe)
        asked = recipe.base.architecture or {}
        windows = recipe.data.train[0].windows
        if windows is not None and asked.get("context_length", windows.context) != windows.context:
            raise UsageError(
                f"base.architecture.context_length: the rows know {windows.context} values. Received: {asked['context_length']}"
            )
        if recipe.cluster.processes > 1 and asked.get("norm_type") != "layernorm":
            raise UsageError(
                "cluster.processes: PatchTST with norm_type `batchnorm` trains in one process (batch statistics); set "
                f"norm_type: layernorm. Received: {recipe.cluster.processes}"
            )

    @classmethod
    def check_rows(cls, part: Evaluate, splits: Mapping[str, pa.Table]) -> None:
        sizes = {(len(p), len(f)) for rows in splits.values() for p, f in zip(*cls.values(rows), strict=True)}
        if len(sizes) > 1:
            raise HermitcrabError(
                f"every row knows as many values and forecasts as many. Received: {sorted(sizes)[:3]}"
            )

    @classmethod
    def values(cls, rows: pa.Table) -> tuple[list[list[float]], list[list[float]]]:
        """The past of each row, and its future where it has one.

        Raises:
            HermitcrabError: what is no list of finite numbers.
        """
        found = []
        for column in ("past", "future"):
            lists = (
                [json.loads(text) for text in rows[column].to_pylist()]
                if column in rows.column_names
                else [[]] * rows.num_rows
            )
            for row, numbers in zip(rows["row_id"].to_pylist(), lists, strict=True):
                if not isinstance(numbers, list) or not all(
                    type(v) in (int, float) and math.isfinite(v) for v in numbers
                ):
                    raise HermitcrabError(
                        f"row {row}: `{column}`: expected a list of finite numbers. Received: {str(numbers)[:60]}"
                    )
            found.append(lists)
        return found[0], found[1]

    @classmethod
    def scales(cls, rows: pa.Table) -> dict[str, float]:
        """Of each series the mean absolute difference of neighbors: what a naive forecast of one step is wrong by."""
        past, _ = cls.values(rows)
        sums: dict[str, list[float]] = {}
        for name, numbers in zip(rows["name"].to_pylist(), past, strict=True):
            step = np.abs(np.diff(numbers))
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float(step.sum())
            total[1] += len(step)
        return {name: max(SMALLEST, total / max(1, count)) for name, (total, count) in sorted(sums.items())}

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        past, future = cls.values(rows.slice(0, 1))
        return {"context": len(past[0]), "horizon": len(future[0]), "scales": cls.scales(rows)}

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        super().check_fitted(fitted, where)
        sound = all(type(v) in (int, float) and v > 0 and math.isfinite(v) for v in fitted["scales"].values())
        if not (0 < fitted["context"] < 1 << 16 and 0 < fitted["horizon"] < 1 << 16 and sound):
            raise HermitcrabError(f"{where}: fitted: context, horizon and scales are not as they are fitted to series")

    @classmethod
    def answers(cls, rows: pa.Table) -> list[list[float]]:
        return [[float(v) for v in numbers] for numbers in cls.values(rows)[1]]

    @classmethod
    def judged(cls, rows: pa.Table, scales: Mapping[str, float]) -> dict[str, list[Any]]:
        """The scale of each row, and its time: origins of one time stand together."""
        past, _ = cls.values(rows)
        pairs = zip(rows["name"].to_pylist(), past, strict=True)
        return {
            "scale": [_scale(scales, *pair) for pair in pairs],
            "document": [str(time) for time in rows["time"].to_pylist()],
        }

    def configured(self) -> dict[str, Any]:
        context, horizon = self.fitted["context"], self.fitted["horizon"]
        return {
            "context_length": context,
            "prediction_length": horizon * len(LEVELS),
            "num_input_channels": 1,
            "loss": "mse",
        }

    def tensors(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        import torch

        past, _ = self.values(rows)
        scale = [_scale(self.fitted["scales"], *pair) for pair in zip(rows["name"].to_pylist(), past, strict=True)]
        known = [numbers[-self.fitted["context"] :] for numbers in past]
        return {"past": torch.tensor(known, dtype=torch.float32), "scale": torch.tensor(scale, dtype=torch.float32)}

    def targets(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        import torch

        return {"future": torch.tensor(self.values(rows)[1], dtype=torch.float32)}

    def outputs(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Quantiles in units of each series' scale, away from its last value: [B, H, Q]."""
        past_BC = batch["past"]
        found = model(past_values=past_BC[..., None]).prediction_outputs[..., 0].float()
        quantile_BHQ = found.view(len(found), self.fitted["horizon"], len(LEVELS))
        return (quantile_BHQ - past_BC[:, -1:, None].float()) / batch["scale"][:, None, None].float()

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Quantile losses (Koenker & Bassett 1978), mean over quantiles and steps, in units of the series' scale."""
        import torch

        quantile_BHQ = self.outputs(model, batch)
        away_BH1 = ((batch["future"] - batch["past"][:, -1:]) / batch["scale"][:, None])[..., None]
        over_BHQ = away_BH1 - quantile_BHQ
        level_Q = torch.tensor(LEVELS, device=over_BHQ.device)
        pinball = torch.maximum(level_Q * over_BHQ, (level_Q - 1) * over_BHQ)
        return Loss(pinball.mean(dim=(1, 2)).sum(), self.count(batch))

    def columns(self, outputs: torch.Tensor, rows: pa.Table) -> dict[str, list[Any]]:
        """The medians, all quantiles in their order, and what the metrics need."""
        past, _ = self.values(rows)
        judged = self.judged(rows, self.fitted["scales"])
        last_N = np.array([numbers[-1] for numbers in past])[:, None, None]
        quantile_NHQ = (
            np.sort(outputs.double().cpu().numpy(), axis=-1) * np.array(judged["scale"])[:, None, None] + last_N
        )
        middle = quantile_NHQ[..., len(LEVELS) // 2]
        return {"prediction": middle.tolist(), "quantiles": quantile_NHQ.tolist(), **judged}

    def probe_rows(self) -> list[dict[str, Any]]:
        """Waves on a slope, of many lengths."""
        place = np.arange(self.fitted["context"])
        rows = []
        for n in range(PROBES):
            wave = 10 + n + 0.05 * (n - 12) * place + np.sin(2 * np.pi * place / (3 + n)) * (1 + n % 4)
            rows.append({"name": f"wave {n}", "time": 0.0, "past": json.dumps(wave.round(6).tolist())})
        return rows

    @classmethod
    def read_inputs(cls, words: Sequence[str], column: str) -> list[Any]:
        """Each `{"name": …, "past": […]}`: the values that are known, the newest last."""
        from hermitcrab.tasks.inputs import jsons

        found = []
        for number, text in enumerate(jsons(words), 1):
            record = json.loads(text)
            if not isinstance(record, dict) or not isinstance(record.get("past"), list):
                wanted = '{"name": "A", "past": [1.0, 2.0, …]}'
                raise UsageError(f"input {number:,}: expected such as {wanted}. Received: {text[:80]}")
            found.append({"name": str(record.get("name", "")), "time": 0.0, "past": json.dumps(record["past"])})
        return found

    def answer(self, model: nn.Module, inputs: list[Any], part: Any) -> list[dict[str, Any]]:
        context = self.fitted["context"]
        for number, one in enumerate(inputs, 1):
            if (given := len(json.loads(one["past"]))) < context:
                raise UsageError(f"input {number:,}: the model looks at {context} values. Received: {given}")
        told = super().answer(model, inputs, part)
        return [{key: value for key, value in one.items() if key not in ("document", "scale")} for one in told]


def _scale(scales: Mapping[str, float], name: str, past: Sequence[float]) -> float:
    """Of a series that no training row has, that of what is known of it."""
    return scales.get(name) or max(SMALLEST, float(np.abs(np.diff(past)).mean()) if len(past) > 1 else 1.0)
