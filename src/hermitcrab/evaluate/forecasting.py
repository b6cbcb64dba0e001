"""Baselines of forecasting: the last value, the last season, and exponential smoothing and ARIMA chosen for each origin by `statsforecast`.

Each sees what the model sees at an origin, `past`, and nothing else. Intervals of the naive ones are those of a random walk: the spread of
its steps in `past`, times the root of how many lie ahead (Hyndman & Athanasopoulos, "Forecasting: Principles and Practice", 5.5).
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import needs
from hermitcrab.evaluate.baseline import Baseline
from hermitcrab.evaluate.forecasts import QUANTILES
from hermitcrab.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

SEASON = 5  # steps: a week of trading days, of days that are all there 7 would be one
LEVEL = 80  # percent, the interval between the outer quantiles


def _answered(task: Any, train: pa.Table, test: pa.Table, quantile_NHQ: np.ndarray, told: dict[str, Any]) -> Baseline:
    columns = {"quantiles": quantile_NHQ.tolist(), **task.judged(test)}
    said = quantile_NHQ[..., len(QUANTILES) // 2].tolist()
    return Baseline(said, [None] * test.num_rows, {"train_rows": train.num_rows, **told}, columns)


def _past(rows: pa.Table) -> np.ndarray:
    return np.array([json.loads(text) for text in rows["past"].to_pylist()], dtype=np.float64)


def _steps(rows: pa.Table) -> int:
    return len(json.loads(rows["future"][0].as_py()))


def _walk(task: Any, train: pa.Table, test: pa.Table, season: int) -> Baseline:
    from scipy.stats import norm

    past_NC, steps = _past(test), _steps(test)
    season = min(season, past_NC.shape[1] - 1)
    ahead_H = np.arange(steps)
    middle_NH = past_NC[:, past_NC.shape[1] - season + ahead_H % season]
    spread_N1 = np.sqrt(np.mean((past_NC[:, season:] - past_NC[:, :-season]) ** 2, axis=1))[:, None]
    spread_NH = spread_N1 * np.sqrt(ahead_H // season + 1)
    quantile_NHQ = middle_NH[..., None] + spread_NH[..., None] * norm.ppf(QUANTILES)
    return _answered(task, train, test, quantile_NHQ, {"season": season})


def naive(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    return _walk(task, train, test, 1)


def seasonal_naive(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    return _walk(task, train, test, SEASON)


def _fitted(kind: str, task: Any, train: pa.Table, test: pa.Table) -> Baseline:
    models = needs("statsforecast.models", "baselines")
    past_NC, steps = _past(test), _steps(test)
    found, failed = [], 0
    with progress(f"baseline {kind}", len(past_NC), "origins") as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for past_C in past_NC:
            try:
                told = getattr(models, kind)(season_length=1).forecast(y=past_C, h=steps, level=[LEVEL])
                found.append(np.stack([told[f"lo-{LEVEL}"], told["mean"], told[f"hi-{LEVEL}"]], axis=1))
            except (ValueError, ArithmeticError, np.linalg.LinAlgError):
                failed += 1  # a series of one value has nothing to fit
                found.append(np.full((steps, len(QUANTILES)), past_C[-1]))
            bar.add()
    version = needs("statsforecast", "baselines").__version__
    return _answered(
        task,
        train,
        test,
        np.array(found),
        {"version": version, "fitted_to": "past of each origin", "not_fitted": failed},
    )


def auto_ets(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    return _fitted("AutoETS", task, train, test)


def auto_arima(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    return _fitted("AutoARIMA", task, train, test)


BASELINES = {"naive": naive, "seasonal-naive": seasonal_naive, "auto-ets": auto_ets, "auto-arima": auto_arima}
