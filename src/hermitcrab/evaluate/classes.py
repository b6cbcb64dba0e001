"""classes.json: what each model made of each class. Rows of a confusion matrix are references, columns predictions.

Shapes: C labels, in the order given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.evaluate.answers import Answers, read
from hermitcrab.evaluate.metrics import FIXED, as_json, row_sums
from hermitcrab.evaluate.statistics import Interval, clustered_interval, wilson

if TYPE_CHECKING:
    import pyarrow as pa


def by_class(
    tables: Mapping[str, pa.Table], labels: Sequence[str], confidence: float, split: str = "test"
) -> dict[str, Any]:
    """`{labels, split, confidence, models: {model: {confusion [C][C], unparsed [C], per_class: [C of {label, support, precision,
    recall, f1}]}}}`; precision and recall carry Wilson's interval (on effective rows where a document groups them).

    Raises:
        HermitcrabError: a reference is none of the labels.
    """
    return {
        "labels": list(labels),
        "split": split,
        "confidence": confidence,
        "models": {model: _model(read(table, model), labels, confidence) for model, table in tables.items()},
    }


def _model(answers: Answers, labels: Sequence[str], confidence: float) -> dict[str, Any]:
    c = len(labels)
    rows_NK = row_sums(answers, labels)
    hit_NC, said_NC, actual_NC = (rows_NK[:, FIXED + i * c : FIXED + (i + 1) * c] for i in range(3))
    confusion_CC = actual_NC.T @ said_NC
    per_class = []
    for i, label in enumerate(labels):
        hits, said, support = (int(part_NC[:, i].sum()) for part_NC in (hit_NC, said_NC, actual_NC))
        f1 = 2 * hits / (said + support) if said + support else 0.0
        per_class.append({
            "label": label,
            "support": support,
            "precision": _share(hit_NC[:, i], said_NC[:, i], answers, confidence),
            "recall": _share(hit_NC[:, i], actual_NC[:, i], answers, confidence),
            "f1": as_json(Interval(f1, math.nan, math.nan)),
        })  # fmt: skip
    return {
        "confusion": confusion_CC.astype(int).tolist(),
        "unparsed": (actual_NC.sum(axis=0) - confusion_CC.sum(axis=1)).astype(int).tolist(),
        "per_class": per_class,
    }


def _share(hits_N: np.ndarray, of_N: np.ndarray, answers: Answers, confidence: float) -> dict[str, float | None]:
    """The share of `hits` among the rows marked by `of`."""
    where = np.flatnonzero(of_N)
    if answers.groups is not None and len(where):
        groups = [answers.groups[i] for i in where]
        return as_json(clustered_interval(hits_N[where], groups, confidence))
    return as_json(wilson(int(hits_N[where].sum()), len(where), confidence))
