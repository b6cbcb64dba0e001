"""time-series-forecasting: what a series does next, with an interval. A row is an origin: `past`, and the `future` that came after it.

Notable:
- The model is PatchTST (Nie et al. 2023, arXiv:2211.14730) of transformers. It is given each past as how far it was from its last value,
  in units of its own mean step (as NLinear, Zeng et al. 2023, arXiv:2205.13504), so what it has to learn is what the last value does
  not know; its head gives three quantiles a step, learnt by the quantile loss.
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
from hermitcrab.models.load import library_errors, quiet
from hermitcrab.recipe import Evaluate, Recipe
from hermitcrab.tasks import Loss
from hermitcrab.tasks.base import BaseTask

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

LEVELS = (0.1, 0.5, 0.9)  # as `evaluate.forecasts` reads them
PROBES = 24
LONGEST = 1 << 16
SMALLEST = 1e-8  # of a scale: a series that never moved


class TimeSeriesForecasting(BaseTask):
    name = "time-series-forecasting"
    formats = ("series",)
    metrics = ("mase", "scaled_quantile_loss", "coverage")
    baselines = ("naive", "seasonal-naive", "auto-ets", "auto-arima")
    fitted_as = {"context": int, "horizon": int}  # noqa: RUF012

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
    def scales(cls, rows: pa.Table) -> np.ndarray:
        """Of each past the mean absolute difference of neighbors: what a naive forecast of one step was wrong by (float64 N)."""
        past, _ = cls.values(rows)
        steps = [np.abs(np.diff(numbers)) for numbers in past]
        return np.array([max(SMALLEST, float(step.mean())) if len(step) else 1.0 for step in steps])

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        past, future = cls.values(rows.slice(0, 1))
        return {"context": len(past[0]), "horizon": len(future[0])}

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        super().check_fitted(fitted, where)
        if not all(0 < fitted[key] < LONGEST for key in ("context", "horizon")):
            raise HermitcrabError(f"{where}: fitted: context and horizon are not as they are fitted to series")

    @classmethod
    def answers(cls, rows: pa.Table) -> list[list[float]]:
        return [[float(v) for v in numbers] for numbers in cls.values(rows)[1]]

    @classmethod
    def judged(cls, rows: pa.Table) -> dict[str, list[Any]]:
        """The scale of each row, and its time: origins of one time stand together."""
        return {"scale": cls.scales(rows).tolist(), "document": [str(time) for time in rows["time"].to_pylist()]}

    @classmethod
    def build(cls, configuration: dict[str, Any], fitted: dict[str, Any]) -> nn.Module:
        """transformers' class, which none of its mappings names."""
        from transformers import PatchTSTConfig, PatchTSTForPrediction

        if configuration["model_type"] != "patchtst":
            raise HermitcrabError(
                f"base.architecture: expected model_type patchtst. Received: {configuration['model_type']}"
            )
        steps = fitted["horizon"] * len(LEVELS)
        sizes = {
            "context_length": fitted["context"],
            "prediction_length": steps,
            "num_input_channels": 1,
            "loss": "mse",
        }
        with quiet(), library_errors("base.architecture"):
            return PatchTSTForPrediction(PatchTSTConfig(**{**configuration, **sizes}))

    def save(self, model: Any, folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)

    def away(self, rows: pa.Table, lists: list[list[float]]) -> torch.Tensor:
        """How far numbers are from the last one known, in units of the row's scale: float32 [N, …]."""
        import torch

        last_N1 = np.array([numbers[-1] for numbers in self.values(rows)[0]])[:, None]
        return torch.from_numpy(((np.array(lists) - last_N1) / self.scales(rows)[:, None]).astype(np.float32))

    def tensors(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        past, _ = self.values(rows)
        return {"past": self.away(rows, [numbers[-self.fitted["context"] :] for numbers in past])}

    def targets(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        return {"future": self.away(rows, self.values(rows)[1])}

    def outputs(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Quantiles away from the last value, in units of the row's scale: [B, H, Q]."""
        found = model(past_values=batch["past"][..., None]).prediction_outputs[..., 0].float()
        return found.view(len(found), self.fitted["horizon"], len(LEVELS))

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Quantile losses (Koenker & Bassett 1978), mean over quantiles and steps, in units of the row's scale."""
        import torch

        over_BHQ = batch["future"][..., None] - self.outputs(model, batch)
        level_Q = torch.tensor(LEVELS, device=over_BHQ.device)
        pinball = torch.maximum(level_Q * over_BHQ, (level_Q - 1) * over_BHQ)
        return Loss(pinball.mean(dim=(1, 2)).sum(), self.count(batch))

    def columns(self, outputs: torch.Tensor, rows: pa.Table) -> dict[str, list[Any]]:
        """The medians, all quantiles in their order, and what the metrics need."""
        judged = self.judged(rows)
        last_N = np.array([numbers[-1] for numbers in self.values(rows)[0]])[:, None, None]
        quantile_NHQ = (
            np.sort(outputs.double().cpu().numpy(), axis=-1) * np.array(judged["scale"])[:, None, None] + last_N
        )
        return {
            "prediction": quantile_NHQ[..., len(LEVELS) // 2].tolist(),
            "quantiles": quantile_NHQ.tolist(),
            **judged,
        }

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
