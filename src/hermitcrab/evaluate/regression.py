"""Metrics of predictions that are numbers, by the names and definitions of scikit-learn. All are functions of sums over rows.

Shapes: N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hermitcrab.evaluate.answers import Answers
from hermitcrab.evaluate.metric import Metric
from hermitcrab.evaluate.statistics import Floats


def row_sums(answers: Answers, labels: Sequence[str]) -> Floats:
    """Rows, squared errors, absolute errors, references and their squares -> float64 N x 5.

    Raises:
        HermitcrabError: a reference or a prediction that is no finite number.
    """
    true_N, said_N = answers.numbers("reference"), answers.numbers("prediction")
    error_N = said_N - true_N
    return np.stack([np.ones_like(true_N), error_N**2, np.abs(error_N), true_N, true_N**2], axis=1)


def r2(total_R5: Floats) -> Floats:
    """1 - squared errors / squared distances from the mean; NaN where all references are equal."""
    n, squares, _, sums, squared = total_R5.T
    spread = squared - sums**2 / n
    return 1 - np.divide(squares, spread, out=np.full_like(squares, np.nan), where=spread > 1e-12 * squared)


def _metric(name: str, values: Callable[[Floats], Floats], lower: bool = True) -> Metric:
    return Metric(name=name, lower_is_better=lower, bounded=False, rows=row_sums, values=values)


METRICS = (
    _metric("root_mean_squared_error", lambda total: np.sqrt(total[:, 1] / total[:, 0])),
    _metric("mean_squared_error", lambda total: total[:, 1] / total[:, 0]),
    _metric("mean_absolute_error", lambda total: total[:, 2] / total[:, 0]),
    _metric("r2", r2, lower=False),
)
