"""Metrics of answers, each with its interval and a version that changes whenever its definition does.

Every metric is a function of sums over rows (see `statistics`), so the figure and its bootstrap are one formula.
Label metrics follow scikit-learn (macro average over the labels given, zero where there is nothing to divide); the
tests hold them to it. What is not one of the labels is a wrong answer, and counted as `unparsed`.

Shapes: N rows, K sums, C labels, M metrics, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError, did_you_mean
from hermitcrab.evaluate.answers import Answers, read
from hermitcrab.evaluate.statistics import Floats, Interval, bootstrap_metric, clustered_interval, wilson

if TYPE_CHECKING:
    import pyarrow as pa

METRIC_VERSION = {
    "accuracy": "1",  # prediction equals the reference, character by character, and is one of the labels
    "precision": "1",  # macro over the labels
    "recall": "1",  # macro over the labels
    "f1": "1",  # macro: the mean of each label's F1
    "exact_match": "1",  # prediction equals the reference, spaces around them aside
    "perplexity": "1",  # exp(nats / tokens) over all rows; comparable only between equal tokenizers
    "bits_per_byte": "1",  # nats / (ln 2 x UTF-8 bytes) over all rows
    "unparsed": "1",  # share of predictions that are none of the labels
}
LABEL_METRICS = ("accuracy", "precision", "recall", "f1")
LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "unparsed")
PROPORTIONS = {"accuracy": 1, "exact_match": 2, "unparsed": 3}  # the sum that is a count of rows

# rows, correct, exact, unparsed, nats, tokens, bytes; then true positives, predicted and actual for each label
FIXED = 7


def within(metric: str, low: float | None, high: float | None, margin: float) -> bool:
    """Does the interval of (compressed - uncompressed) lie on the right side of the margin? An unknown one does not."""
    worst = None if low is None or high is None else high if metric in LOWER_IS_BETTER else -low
    return worst is not None and worst <= margin


def available(names: Sequence[str], answers: Answers, labels: Sequence[str]) -> list[str]:
    """Those of `names` that these answers can give, in the same order."""
    has = {
        **dict.fromkeys(LABEL_METRICS, bool(labels) and any(p is not None for p in answers.prediction)),
        "exact_match": any(p is not None for p in answers.prediction),
        "perplexity": answers.nll is not None and answers.tokens is not None and answers.tokens.any(),
        "bits_per_byte": answers.nll is not None and answers.bytes is not None and answers.bytes.any(),
    }
    for name in names:
        if name not in has:
            raise HermitcrabError(f"there is no metric `{name}`{did_you_mean(name, has)}")
    return [name for name in names if has[name]]


def correct(answers: Answers, name: str) -> Floats:
    """1 where the answer is right, 0 where it is wrong, by `name` (accuracy or exact_match) -> float64 N."""
    if name == "exact_match":
        hits = [
            p is not None and p.strip() == r.strip() for p, r in zip(answers.prediction, answers.reference, strict=True)
        ]
    else:
        hits = [p == r for p, r in zip(answers.prediction, answers.reference, strict=True)]
    return np.array(hits, dtype=np.float64)


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
    rows_NK[:, 2] = correct(answers, "exact_match")
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


def values(names: Sequence[str], totals_RK: Floats) -> Floats:
    """The metrics on totals of `row_sums` -> float64 R x M."""
    c = (totals_RK.shape[1] - FIXED) // 3
    rows, nats = totals_RK[:, 0], totals_RK[:, 4]
    hit, said, actual = (totals_RK[:, FIXED + i * c : FIXED + (i + 1) * c] for i in range(3))

    def macro(numerator_RC: Floats, denominator_RC: Floats) -> Floats:
        share = np.divide(numerator_RC, denominator_RC, out=np.zeros_like(numerator_RC), where=denominator_RC > 0)
        return share.mean(axis=1)

    def value(name: str) -> Floats:
        match name:
            case "accuracy" | "exact_match" | "unparsed":
                return totals_RK[:, PROPORTIONS[name]] / rows
            case "precision":
                return macro(hit, said)
            case "recall":
                return macro(hit, actual)
            case "f1":
                return macro(2 * hit, said + actual)
            case "perplexity":
                return np.exp(nats / totals_RK[:, 5])
            case "bits_per_byte":
                return nats / (math.log(2) * totals_RK[:, 6])
        raise ValueError(name)

    return np.stack([value(name) for name in names], axis=1)


def point(table: pa.Table, name: str, labels: Sequence[str] = ()) -> float:
    """One metric without its interval: for choices made on validation rows."""
    answers = read(table, "validation")
    if not available([name], answers, labels):
        raise HermitcrabError(f"the answers have no column that `{name}` could be computed from")
    return float(values([name], row_sums(answers, labels).sum(axis=0, keepdims=True))[0, 0])


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
    rows_NK = row_sums(answers, labels)
    names = available(names, answers, labels)
    if labels and rows_NK[:, 3].any():
        names.append("unparsed")
    sampled = [name for name in names if name not in PROPORTIONS]
    intervals: Mapping[str, Interval] = {}
    if sampled:
        intervals = dict(zip(sampled, bootstrap_metric(
            lambda totals: values(sampled, totals), rows_NK,
            groups=answers.groups, resamples=resamples, confidence=confidence, seed=seed,
        ), strict=True))  # fmt: skip
    return [
        {
            "name": name,
            "version": METRIC_VERSION[name],
            **as_json(
                intervals[name]
                if name in intervals
                else _proportion(rows_NK[:, PROPORTIONS[name]], answers, confidence)
            ),
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
