"""Metrics of answers, each with its interval and a version that changes whenever its definition does.

What a metric may be is in `metric`; those here are functions of sums over rows, so the figure and its bootstrap are one formula.
Label metrics follow scikit-learn (macro average over the labels given, zero where there is nothing to divide); the
tests hold them to it. What is not one of the labels is a wrong answer, and counted as `unparsed`.

Shapes: N rows, K sums, C labels, M metrics, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError, did_you_mean
from hermitcrab.evaluate import curves, forecasts, ranking, regression, translating
from hermitcrab.evaluate.answers import Answers, read
from hermitcrab.evaluate.metric import FEWER, Metric
from hermitcrab.evaluate.statistics import (
    Floats,
    Interval,
    bootstrap_metric,
    bootstrap_weighted,
    clustered_interval,
    wilson,
)

if TYPE_CHECKING:
    import pyarrow as pa

LABEL_METRICS = ("accuracy", "precision", "recall", "f1")

# rows, correct, exact, unparsed, nats, tokens, bytes; then true positives, predicted and actual for each label
FIXED = 7


def correct(answers: Answers) -> Floats:
    """1 where the prediction is the reference, else 0 -> float64 N."""
    return np.array([p == r for p, r in zip(answers.prediction, answers.reference, strict=True)], dtype=np.float64)


def exact(answers: Answers) -> Floats:
    """The same, spaces around both aside."""
    pairs = zip(answers.prediction, answers.reference, strict=True)
    return np.array([p is not None and str(p).strip() == str(r).strip() for p, r in pairs], dtype=np.float64)


def row_sums(answers: Answers, labels: Sequence[str]) -> Floats:
    """What each row adds to the sums -> float64 N x (7 + 3 C).

    Raises:
        HermitcrabError: a reference is none of the labels.
    """
    n, c = len(answers), len(labels)
    rows_NK = np.zeros((n, FIXED + 3 * c))
    rows_NK[:, 0] = 1
    for column, numbers in ((4, answers.nll), (5, answers.tokens), (6, answers.bytes)):
        if numbers is not None:
            rows_NK[:, column] = numbers
    if all(p is None for p in answers.prediction):
        return rows_NK
    rows_NK[:, 2] = exact(answers)
    index = {label: i for i, label in enumerate(labels)}
    for i, (row, reference, prediction) in enumerate(
        zip(answers.row_ids, answers.reference, answers.prediction, strict=True) if labels else ()
    ):
        if reference not in index:
            raise HermitcrabError(
                f"row {row}: the reference {reference!r} is none of the choices; expected one of: {', '.join(labels)}"
            )
        rows_NK[i, FIXED + 2 * c + index[reference]] = 1
        said = index.get(prediction) if prediction is not None else None
        if said is None:
            rows_NK[i, 3] = 1
            continue
        rows_NK[i, FIXED + c + said] = 1
        if prediction == reference:
            rows_NK[i, 1] = rows_NK[i, FIXED + said] = 1
    return rows_NK


def _column(number: int) -> Callable[[Floats], Floats]:
    return lambda totals_RK: totals_RK[:, number] / totals_RK[:, 0]


def _share(number: int) -> Callable[[Answers, Sequence[str]], Floats]:
    return lambda answers, labels: row_sums(answers, labels)[:, number]


def _macro(numerator: tuple[int, ...], denominator: tuple[int, ...]) -> Callable[[Floats], Floats]:
    """The mean over labels of one sum of the parts (0 hit, 1 said, 2 actual) by another; 0 where there is nothing to divide."""

    def values(totals_RK: Floats) -> Floats:
        c = (totals_RK.shape[1] - FIXED) // 3
        parts = [totals_RK[:, FIXED + i * c : FIXED + (i + 1) * c] for i in range(3)]
        above_RC, below_RC = (np.sum([parts[i] for i in chosen], axis=0) for chosen in (numerator, denominator))
        return np.divide(above_RC, below_RC, out=np.zeros_like(above_RC), where=below_RC > 0).mean(axis=1)

    return values


def _label_metric(name: str, numerator: tuple[int, ...], denominator: tuple[int, ...]) -> Metric:
    return Metric(name=name, labels=True, right=correct, rows=row_sums, values=_macro(numerator, denominator))


METRICS = {metric.name: metric for metric in (
    # prediction equals the reference, character by character, and is one of the labels
    Metric(name="accuracy", labels=True, right=correct, share=_share(1), rows=row_sums, values=_column(1)),
    _label_metric("precision", (0,), (1,)),  # macro over the labels
    _label_metric("recall", (0,), (2,)),  # macro over the labels
    _label_metric("f1", (0, 0), (1, 2)),  # macro: the mean of each label's F1
    Metric(name="exact_match", right=exact, share=_share(2), rows=row_sums, values=_column(2)),
    # exp(nats / tokens) over all rows; comparable only between equal tokenizers
    Metric(name="perplexity", lower_is_better=True, needs=("nll", "tokens"), bounded=False, same=("tokens",), rows=row_sums,
           values=lambda totals: np.exp(totals[:, 4] / totals[:, 5])),
    # nats / (ln 2 x UTF-8 bytes) over all rows
    Metric(name="bits_per_byte", lower_is_better=True, needs=("nll", "bytes"), bounded=False, rows=row_sums,
           values=lambda totals: totals[:, 4] / (math.log(2) * totals[:, 6])),
    # share of predictions that are none of the labels
    Metric(name="unparsed", lower_is_better=True, labels=True, share=_share(3), rows=row_sums, values=_column(3)),
)}  # fmt: skip
METRICS |= {
    metric.name: metric for family in (regression, curves, ranking, forecasts, translating) for metric in family.METRICS
}
"""Those of our own tasks, one module a family; a task from outside brings its own (`own_metrics`)."""


def find(name: str) -> Metric:
    """The metric of that name: one of those here, or one that a task brings.

    Raises:
        HermitcrabError: no task knows it.
    """
    if name in METRICS:
        return METRICS[name]
    from hermitcrab.tasks import own_metrics

    known = own_metrics()
    if name not in known:
        raise HermitcrabError(f"there is no metric `{name}`{did_you_mean(name, [*METRICS, *known])}")
    return known[name]


def lower_is_better(name: str) -> bool:
    return find(name).lower_is_better


def within(metric: str, low: float | None, high: float | None, margin: float) -> bool:
    """Does the interval of (compressed - uncompressed) lie on the right side of the margin? An unknown one does not."""
    worst = None if low is None or high is None else high if lower_is_better(metric) else -low
    return worst is not None and worst <= margin


def available(names: Sequence[str], answers: Answers, labels: Sequence[str]) -> list[str]:
    """Those of `names` that these answers can give, in the same order."""
    return [name for name in names if find(name).given(answers, labels)]


@dataclass(frozen=True)
class Summed:
    """Metrics of the first kind, computed together: those with the same `rows` share its columns."""

    names: tuple[str, ...]
    labels: Sequence[str]
    widths: dict[Any, slice] = field(default_factory=dict)

    def rows(self, answers: Answers) -> Floats:
        """What each row adds to the sums of all -> float64 N x K."""
        parts: list[Floats] = []
        for rows in dict.fromkeys(find(name).rows for name in self.names):
            assert rows is not None
            part_NK = rows(answers, self.labels)
            begin = sum(p.shape[1] for p in parts)
            known = self.widths.setdefault(rows, slice(begin, begin + part_NK.shape[1]))
            if known != slice(begin, begin + part_NK.shape[1]):
                raise HermitcrabError(
                    f"`{answers.model}`: its answers give other sums than those that they are compared with"
                )
            parts.append(part_NK)
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(answers), 0))

    def values(self, totals_RK: Floats) -> Floats:
        """The metrics on totals of `rows` -> float64 R x M."""
        found = [(metric := find(name)).values(totals_RK[:, self.widths[metric.rows]]) for name in self.names]  # type: ignore[misc]
        return np.stack(found, axis=1) if found else np.zeros((len(totals_RK), 0))


def kinds(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that are functions of sums, and those that are not."""
    return (
        tuple(name for name in names if find(name).weighted is None),
        tuple(name for name in names if find(name).weighted is not None),
    )


def value_of(name: str, answers: Answers, labels: Sequence[str]) -> float:
    """One metric of answers that can give it."""
    metric = find(name)
    if metric.weighted is not None:
        return float(metric.weighted(answers, labels)(np.ones((1, len(answers))))[0])
    summed = Summed((name,), labels)
    return float(summed.values(summed.rows(answers).sum(axis=0, keepdims=True))[0, 0])


def point(table: pa.Table, name: str, labels: Sequence[str] = ()) -> float:
    """One metric without its interval: for choices made on validation rows."""
    answers = read(table, "validation")
    if not available([name], answers, labels):
        raise HermitcrabError(f"the answers have no column that `{name}` could be computed from")
    return value_of(name, answers, labels)


def measure(
    table: pa.Table,
    names: Sequence[str],
    labels: Sequence[str] = (),
    *,
    model: str,
    split: str = "test",
    prompt_digest: str | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Entries `{name, version, value, low, high, n, split, model, prompt_digest}`, one a metric the table can give.

    Proportions carry Wilson's interval (on the effective number of rows where a `document` column names groups), the
    others the bootstrap's over rows or groups. `low` and `high` are None where the sample cannot tell. `unparsed` is
    added where labels are given and some prediction is none of them.
    """
    return _entries(
        read(table, model), names, labels, split=split, prompt_digest=prompt_digest,
        confidence=confidence, resamples=resamples, seed=seed,
    )  # fmt: skip


def classification(
    reference: Sequence[str],
    prediction: Sequence[str | None],
    labels: Sequence[str],
    *,
    model: str,
    names: Sequence[str] = LABEL_METRICS,
    groups: Sequence[str | None] | None = None,
    split: str = "test",
    prompt_digest: str | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`measure` for answers at hand as lists."""
    ids = [f"{i:012d}" for i in range(len(reference))]
    answers = Answers(
        model, ids, list(reference), list(prediction), groups=list(groups) if groups is not None else None
    )
    return _entries(
        answers, names, labels, split=split, prompt_digest=prompt_digest,
        confidence=confidence, resamples=resamples, seed=seed,
    )  # fmt: skip


def _entries(
    answers: Answers,
    names: Sequence[str],
    labels: Sequence[str],
    *,
    split: str,
    prompt_digest: str | None,
    confidence: float,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    if not len(answers):
        raise HermitcrabError(f"`{answers.model}` has no {split} rows to be measured on")
    names = available(names, answers, labels)
    if labels and find("unparsed").given(answers, labels) and row_sums(answers, labels)[:, 3].any():
        names.append("unparsed")
    shares = {name: share(answers, labels) for name in names if (share := find(name).share)}
    summed, weighted = kinds([name for name in names if name not in shares])
    how: dict[str, Any] = {"groups": answers.groups, "confidence": confidence, "seed": seed}
    intervals = {name: _proportion(hits_N, answers, confidence) for name, hits_N in shares.items()}
    if summed:
        made = Summed(summed, labels)
        rows_NK = made.rows(answers)
        found = bootstrap_metric(made.values, rows_NK, resamples=resamples, **how)
        intervals |= dict(zip(summed, found, strict=True))
    for name in weighted:
        fn = find(name).weighted(answers, labels)  # type: ignore[misc]
        intervals[name] = bootstrap_weighted(fn, len(answers), resamples=min(resamples, FEWER), **how)[0]
    return [
        {
            "name": name,
            "version": find(name).version,
            **as_json(intervals[name]),
            "n": len(answers),
            "split": split,
            "model": answers.model,
            "prompt_digest": prompt_digest,
        }
        for name in names
    ]


def _proportion(hits_N: Floats, answers: Answers, confidence: float) -> Interval:
    if answers.groups is not None:
        return clustered_interval(hits_N, answers.groups, confidence)
    return wilson(int(hits_N.sum()), len(hits_N), confidence)


def as_json(interval: Interval) -> dict[str, float | None]:
    """`{value, low, high}`; JSON has no NaN, so what the sample cannot tell is None."""
    return {name: number if math.isfinite(number) else None for name, number in interval._asdict().items()}
