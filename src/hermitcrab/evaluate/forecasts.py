"""Metrics of forecasts, in units of what a naive forecast of the row's own past was wrong by, so that series of every size count alike.

A row is an origin of a series: `reference` and `prediction` (medians) are lists of H values, `quantiles` a list of H lists, `scale` the
mean absolute difference of neighbors in its past. Origins of one time stand together (`document`): series move together.

Shapes: N rows, H steps, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hermitcrab.evaluate.answers import Answers
from hermitcrab.evaluate.metric import Metric
from hermitcrab.evaluate.statistics import Floats

QUANTILES = (0.1, 0.5, 0.9)
"""What every forecast gives: the middle, and an interval of four fifths."""


def row_sums(answers: Answers, labels: Sequence[str]) -> Floats:
    """Steps, scaled absolute errors, scaled quantile losses (mean over quantiles), steps within the outer quantiles -> float64 N x 4."""
    true_NH, said_NH = np.array(answers.reference, dtype=np.float64), np.array(answers.prediction, dtype=np.float64)
    quantile_NHQ = np.array(answers.column("quantiles"), dtype=np.float64)
    scale_N1 = answers.numbers("scale")[:, None]
    over_NHQ = true_NH[..., None] - quantile_NHQ
    level_Q = np.array(QUANTILES)
    pinball_NH = np.maximum(level_Q * over_NHQ, (level_Q - 1) * over_NHQ).mean(axis=-1)
    inside_NH = (true_NH >= quantile_NHQ[..., 0]) & (true_NH <= quantile_NHQ[..., -1])
    parts = (np.ones_like(true_NH), np.abs(true_NH - said_NH) / scale_N1, pinball_NH / scale_N1, inside_NH)
    return np.stack([part.sum(axis=1) for part in parts], axis=1)


def _metric(name: str, column: int, lower: bool = True) -> Metric:
    return Metric(
        name=name, lower_is_better=lower, needs=("prediction", "quantiles", "scale"), bounded=not lower, rows=row_sums,
        values=lambda total: total[:, column] / total[:, 0],
    )  # fmt: skip


METRICS = (
    _metric("mase", 1),  # Hyndman & Koehler 2006, doi:10.1016/j.ijforecast.2006.03.001
    _metric(
        "scaled_quantile_loss", 2
    ),  # as the scaled pinball loss of the M5 competition, doi:10.1016/j.ijforecast.2021.10.009
    _metric("coverage", 3, lower=False),  # of the interval between the outer quantiles: .8 is right, more is too wide
)
