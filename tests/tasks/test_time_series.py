"""Forecasts: the loss, scales, metrics by hand, and baselines of a random walk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.answers import read
from hermitcrab.evaluate.forecasting import naive, seasonal_naive
from hermitcrab.evaluate.forecasts import QUANTILES
from hermitcrab.evaluate.metrics import value_of
from hermitcrab.recipe import Train
from hermitcrab.tasks import Start
from hermitcrab.tasks.time_series_forecasting import LEVELS, TimeSeriesForecasting


def rows(past: list[list[float]], future: list[list[float]], names: list[str] | None = None) -> pa.Table:
    n = len(past)
    return pa.table({"row_id": [f"{i:016x}" for i in range(n)], "name": names or ["a"] * n, "time": [float(i // 2) for i in range(n)],
                     "past": [json.dumps(p) for p in past], "future": [json.dumps(f) for f in future]})  # fmt: skip


def test_scales_are_what_the_last_value_was_wrong_by():
    found = TimeSeriesForecasting.scales(rows([[1, 2, 4], [4, 4, 5], [7, 7, 7]], [[1]] * 3))
    assert found.tolist() == [1.5, 0.5, 1e-8]
    with pytest.raises(HermitcrabError, match="row 0000000000000000: `past`: expected a list of finite numbers"):
        TimeSeriesForecasting.scales(rows([["x"]], [[1]]))


def test_metrics_are_those_of_their_definitions():
    assert LEVELS == QUANTILES
    table = pa.table({
        "row_id": ["a", "b"], "reference": [[2.0, 4.0], [1.0, 1.0]], "prediction": [[3.0, 4.0], [1.0, 3.0]],
        "quantiles": [[[2.5, 3.0, 3.5], [3.0, 4.0, 5.0]], [[0.0, 1.0, 2.0], [0.0, 3.0, 4.0]]], "scale": [2.0, 1.0],
        "document": ["0", "1"],
    })  # fmt: skip
    answers = read(table, "m")
    assert value_of("mase", answers, ()) == pytest.approx((1 / 2 + 0 + 0 + 2) / 4)
    assert value_of("coverage", answers, ()) == pytest.approx(3 / 4)

    def pinball(y: float, quantiles: list[float]) -> float:
        return float(np.mean([max(q * (y - f), (q - 1) * (y - f)) for q, f in zip(QUANTILES, quantiles, strict=True)]))

    wanted = (pinball(2, [2.5, 3, 3.5]) + pinball(4, [3, 4, 5])) / 2 + pinball(1, [0, 1, 2]) + pinball(1, [0, 3, 4])
    assert value_of("scaled_quantile_loss", answers, ()) == pytest.approx(wanted / 4)


def test_the_naive_forecasts_are_the_last_value_and_the_last_season():
    draw = np.random.default_rng(0)
    past = (10 + draw.normal(size=(4, 30)).cumsum(axis=1)).tolist()
    test = rows(past, [[1.0] * 6] * 4)
    found = naive(TimeSeriesForecasting, test, test, test)
    assert [p[0] for p in found.predictions] == [p[-1] for p in past]
    spread = np.array(found.columns["quantiles"])[:, :, 2] - np.array(found.predictions)
    assert spread[:, 3] == pytest.approx(2 * spread[:, 0])  # four steps ahead, twice as wide
    season = seasonal_naive(TimeSeriesForecasting, test, test, test)
    assert season.predictions[0] == pytest.approx([*past[0][-5:], past[0][-5]])
    assert found.columns["document"] == ["0.0", "0.0", "1.0", "1.0"]


def test_the_loss_is_a_sum_and_a_count_and_does_not_know_the_unit():
    base = {"kind": "scratch", "model_type": "patchtst", "files": [], "configuration": {
        "model_type": "patchtst", "patch_length": 2, "patch_stride": 2, "d_model": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "ffn_dim": 8, "norm_type": "layernorm"}}  # fmt: skip
    draw = np.random.default_rng(0)
    past = (10 + draw.normal(size=(6, 8)).cumsum(axis=1)).tolist()
    future = draw.normal(10, 1, (6, 2)).tolist()
    losses = []
    for unit in (1.0, 1000.0):
        table = rows((unit * np.array(past)).tolist(), (unit * np.array(future)).tolist())
        fitted = TimeSeriesForecasting.fit(table, base, Path())
        assert (fitted["context"], fitted["horizon"]) == (8, 2)
        task = TimeSeriesForecasting(Start(base, Path(), 1, fitted), Train(method="full"))
        model = task.model(torch.float32)
        from hermitcrab.data.ledger import Ledger

        examples, _ = task.examples(table, Ledger("rows"))
        whole = task.loss(model, task.batch(examples, np.arange(6)))
        parts = [task.loss(model, task.batch(examples, np.arange(i, i + 3))) for i in (0, 3)]
        assert whole.count == sum(p.count for p in parts) == 6
        assert float(whole.sum.detach()) == pytest.approx(sum(float(p.sum.detach()) for p in parts), rel=1e-5)
        losses.append(float(whole.sum.detach()))
        columns = task.columns(task.outputs_of(model, table), table)
        assert all(q == sorted(q) for row in columns["quantiles"] for q in row)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
