"""Metrics of the probabilities that a classifier gives: how well it ranks, and how far its confidence can be believed.

Areas under curves are no function of sums over rows: rows are sorted once, and a resample weighs them. Names and definitions are
scikit-learn's (`roc_auc` one-vs-rest with macro average where there are more than two labels), `calibration_error` torchmetrics'.

Shapes: N rows, R resamples, C labels, T distinct scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.answers import Answers
from hermitcrab.evaluate.metric import Metric
from hermitcrab.evaluate.statistics import Floats

BINS = 15  # of confidence, as torchmetrics has them
SMALLEST = 1e-15  # a probability that is held to be zero costs no more than this one


def log_probabilities(answers: Answers, labels: Sequence[str]) -> Floats:
    """The column `scores` -> float64 N x C.

    Raises:
        HermitcrabError: a row has not as many as there are labels.
    """
    rows = answers.column("scores")
    wrong = next((i for i, row in enumerate(rows) if row is None or len(row) != len(labels)), None)
    if wrong is not None:
        raise HermitcrabError(
            f"`{answers.model}`: row {answers.row_ids[wrong]}: expected a score for each of {len(labels)} labels"
        )
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(labels))


def truth(answers: Answers, labels: Sequence[str]) -> Floats:
    """1 where the reference is the label -> float64 N x C."""
    return np.array([[r == label for label in labels] for r in answers.reference], dtype=np.float64)


def _ranked(score_N: Floats, true_N: Floats) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    """Weights of all rows, and of the true ones, summed from the largest score down to each distinct one: R x N -> R x T."""
    order = np.argsort(-score_N, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score_N[order]) != 0, True))  # rows with one score stand together

    def summed(weight_RN: Floats) -> Floats:
        return np.cumsum(weight_RN[:, order], axis=1)[:, ends]

    return summed, lambda weight_RN: summed(weight_RN * true_N)


def _auc(score_N: Floats, true_N: Floats) -> Callable[[Floats], Floats]:
    every, hits = _ranked(score_N, true_N)

    def values(weight_RN: Floats) -> Floats:
        true_RT = hits(weight_RN)
        false_RT = every(weight_RN) - true_RT
        width_RT = np.diff(false_RT, axis=1, prepend=0)
        height_RT = (true_RT + np.concatenate([np.zeros((len(true_RT), 1)), true_RT[:, :-1]], axis=1)) / 2
        whole_R = true_RT[:, -1] * false_RT[:, -1]
        area_R = (width_RT * height_RT).sum(axis=1)
        return np.divide(area_R, whole_R, out=np.full_like(area_R, np.nan), where=whole_R > 0)

    return values


def _average_precision(score_N: Floats, true_N: Floats) -> Callable[[Floats], Floats]:
    every, hits = _ranked(score_N, true_N)

    def values(weight_RN: Floats) -> Floats:
        true_RT, every_RT = hits(weight_RN), every(weight_RN)
        precision_RT = np.divide(true_RT, every_RT, out=np.ones_like(true_RT), where=every_RT > 0)
        gained_RT = np.diff(true_RT, axis=1, prepend=0)
        whole_R, sum_R = true_RT[:, -1], (gained_RT * precision_RT).sum(axis=1)
        return np.divide(sum_R, whole_R, out=np.full_like(whole_R, np.nan), where=whole_R > 0)

    return values


def by_label(
    curve: Callable[[Floats, Floats], Callable[[Floats], Floats]],
) -> Callable[..., Callable[[Floats], Floats]]:
    """Of two labels the second is the positive one; of more, each against the rest, and their mean."""

    def weighted(answers: Answers, labels: Sequence[str]) -> Callable[[Floats], Floats]:
        score_NC, true_NC = log_probabilities(answers, labels), truth(answers, labels)
        which = [1] if len(labels) == 2 else range(len(labels))
        parts = [curve(score_NC[:, c], true_NC[:, c]) for c in which]
        return lambda weight_RN: np.mean([part(weight_RN) for part in parts], axis=0)

    return weighted


def row_sums(answers: Answers, labels: Sequence[str]) -> Floats:
    """Rows, nats of the reference, squared distance from the one-hot reference; then rows, confidence and hits by bin of confidence
    -> float64 N x (3 + 3 BINS)."""
    p_NC, true_NC = np.exp(log_probabilities(answers, labels)), truth(answers, labels)
    n = len(p_NC)
    rows_NK = np.zeros((n, 3 + 3 * BINS))
    rows_NK[:, 0] = 1
    rows_NK[:, 1] = -np.log(np.maximum((p_NC * true_NC).sum(axis=1), SMALLEST))
    rows_NK[:, 2] = ((p_NC - true_NC) ** 2).sum(axis=1) / (2 if len(labels) == 2 else 1)
    sure_N = p_NC.max(axis=1, initial=0)
    hit_N = true_NC[np.arange(n), p_NC.argmax(axis=1)] if n else np.zeros(0)
    bin_N = np.clip(np.ceil(sure_N * BINS).astype(int) - 1, 0, BINS - 1)
    for part, numbers in enumerate((np.ones(n), sure_N, hit_N)):
        rows_NK[np.arange(n), 3 + part * BINS + bin_N] = numbers
    return rows_NK


def calibration_error(total_RK: Floats) -> Floats:
    """Mean distance of confidence and accuracy over bins of confidence, weighted by their rows (Guo et al. 2017, arXiv:1706.04599)."""
    _, sure_RB, hit_RB = (total_RK[:, 3 + i * BINS : 3 + (i + 1) * BINS] for i in range(3))
    return np.abs(sure_RB - hit_RB).sum(axis=1) / total_RK[:, 0]


METRICS = (
    Metric(name="roc_auc", labels=True, needs=("prediction", "scores"), weighted=by_label(_auc)),
    Metric(name="average_precision", labels=True, needs=("prediction", "scores"), weighted=by_label(_average_precision)),
    Metric(name="log_loss", labels=True, lower_is_better=True, needs=("prediction", "scores"), bounded=False, rows=row_sums,
           values=lambda total: total[:, 1] / total[:, 0]),
    Metric(name="brier_score", labels=True, lower_is_better=True, needs=("prediction", "scores"), rows=row_sums,
           values=lambda total: total[:, 2] / total[:, 0]),
    Metric(name="calibration_error", labels=True, lower_is_better=True, needs=("prediction", "scores"), rows=row_sums,
           values=calibration_error),
)  # fmt: skip
