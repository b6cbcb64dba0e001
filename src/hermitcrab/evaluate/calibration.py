"""Removing a model's label bias: a base that says "positive" to everything may rank answers well and still score badly.

A fine-tuned model gets its label bias right for free, so a base measured without this loses by more than it should
(Zhao et al. 2021, "Calibrate Before Use", arXiv:2102.09690). Here the offsets are fitted on labelled validation rows,
which is more generous to the base than that paper's content-free prompts.

Shapes: N rows, C choices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.statistics import Floats

PRIOR = 1e-3  # weight of the squared offsets a row: keeps them finite where a choice never occurs or the rows separate


def fit_offsets(scores_NC: npt.ArrayLike, reference_index_N: npt.ArrayLike) -> Floats:
    """Offsets of each choice, to be added to its score (float64 C, mean zero).

    Maximum likelihood of P(choice c) = softmax_c(slope * score_c + bias_c): one slope for all choices and a bias for
    each, which is Platt scaling (1999, "Probabilistic outputs for support vector machines") for any number of choices.
    The slope is held positive, so offset_c = bias_c / slope leaves the order that the model itself gives.

    Raises:
        HermitcrabError: no rows, fewer than two choices, scores not finite, or an index that is no choice.
    """
    x_NC, y_N = np.asarray(scores_NC, dtype=np.float64), np.asarray(reference_index_N, dtype=np.int64)
    if x_NC.ndim != 2 or not len(x_NC) or x_NC.shape[1] < 2 or y_N.shape != (len(x_NC),):
        raise HermitcrabError(
            "calibration needs at least one validation row and the scores of at least two choices on each. "
            f"Received: scores of shape {x_NC.shape}, references of shape {y_N.shape}"
        )
    n, c = x_NC.shape
    if not np.isfinite(x_NC).all():
        raise HermitcrabError(
            f"calibration: the scores of validation row {int(np.argwhere(~np.isfinite(x_NC))[0, 0]) + 1} are not finite"
        )
    if y_N.min() < 0 or y_N.max() >= c:
        raise HermitcrabError(
            f"calibration: expected references from 0 to {c - 1}. Received: {y_N.min()} to {y_N.max()}"
        )
    x_NC = x_NC - x_NC.mean(axis=1, keepdims=True)  # a constant per row changes no probability
    scale = float(x_NC.std()) or 1.0
    x_NC = x_NC / scale
    truth_NC = np.eye(c)[y_N]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, bias_C = parameters[0], parameters[1:]
        logits_NC = slope * x_NC + bias_C
        log_p_NC = special.log_softmax(logits_NC, axis=1)
        error_NC = np.exp(log_p_NC) - truth_NC
        gradient = np.concatenate([[(error_NC * x_NC).sum()], error_NC.sum(axis=0) + 2 * n * PRIOR * bias_C]) / n
        return float(-(truth_NC * log_p_NC).sum() / n + PRIOR * (bias_C**2).sum()), gradient

    start = np.concatenate([[1.0], np.zeros(c)])
    bounds = [(1e-3, 1e3), *[(None, None)] * c]
    # Convex in (slope, biases); tight tolerances, so that the answer does not depend on the path taken.
    fitted = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}
    ).x
    offsets_C = fitted[1:] / fitted[0] * scale
    return offsets_C - offsets_C.mean()


def apply(scores_NC: npt.ArrayLike, offsets_C: npt.ArrayLike) -> Floats:
    """Scores with the label bias removed; the calibrated answer is the argmax over C."""
    return np.asarray(scores_NC, dtype=np.float64) + np.asarray(offsets_C, dtype=np.float64)
