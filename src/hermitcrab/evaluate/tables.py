"""Baselines on tables: what a user would otherwise take. Deterministic, one thread, and they tell what they were fitted on.

LightGBM (Ke et al. 2017) stops early on validation rows; without any it grows its default of a hundred trees.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.evaluate.baseline import Baseline

if TYPE_CHECKING:
    import pyarrow as pa

MOST_TREES, FEW_TREES, PATIENCE = 2000, 100, 50
RATE = 0.05


def prior(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    """The shares of the labels in the training rows, for every row: what a probability is worth that knows no row."""
    counts = Counter(task.answers(train))
    labels = sorted(counts)
    log_p = [float(np.log(counts[label] / train.num_rows)) for label in labels]
    best = int(np.argmax(log_p))
    n = test.num_rows
    told = {"train_rows": train.num_rows, "shares": {label: counts[label] / train.num_rows for label in labels}}
    return Baseline([labels[best]] * n, [log_p[best]] * n, told, {"scores": [log_p] * n})


def linear_regression(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    """Ridge regression on scaled columns, its strength by leave-one-out on the training rows."""
    ridge = needs("sklearn.linear_model", "train").RidgeCV
    x, asked = task.learnt_features(train, test)
    model = ridge(alphas=np.logspace(-2, 3, 11)).fit(x, task.answers(train))
    told = {"train_rows": train.num_rows, "features": x.shape[1], "alpha": float(model.alpha_)}
    return Baseline(model.predict(asked).tolist(), [None] * test.num_rows, told)


def lightgbm(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    labels = sorted(set(task.answers(train)))
    index = {label: i for i, label in enumerate(labels)}
    model, asked, told = _boosted("LGBMClassifier", task, train, validation, test, lambda r: index[r])
    p_NC = np.clip(model.predict_proba(asked), 1e-12, 1) if len(asked) else np.zeros((0, len(labels)))
    log_p_NC = np.log(p_NC)
    return Baseline(
        [labels[i] for i in log_p_NC.argmax(1)],
        log_p_NC.max(1, initial=-np.inf).tolist(),
        told,
        {"scores": log_p_NC.tolist()},
    )


def lightgbm_regressor(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    model, asked, told = _boosted("LGBMRegressor", task, train, validation, test, float)
    return Baseline(model.predict(asked).tolist(), [None] * test.num_rows, told)


def _boosted(
    kind: str, task: Any, train: pa.Table, validation: pa.Table, test: pa.Table, number: Any
) -> tuple[Any, np.ndarray, dict[str, Any]]:
    made = needs("lightgbm", "baselines")
    (x, held, asked), codes = task.plain_features(train, validation, test)
    target, wanted = ([number(r) for r in task.answers(part)] for part in (train, validation))
    if len(set(target)) < 2:
        raise HermitcrabError("the baseline `lightgbm` needs training rows of at least two targets")
    stops = len(held) > 0
    model = getattr(made, kind)(
        n_estimators=MOST_TREES if stops else FEW_TREES, learning_rate=RATE, n_jobs=1, random_state=0, deterministic=True,
        force_row_wise=True, verbose=-1,
    )  # fmt: skip
    more: dict[str, Any] = {}
    if stops:
        more = {"eval_set": [(held, wanted)], "callbacks": [made.early_stopping(PATIENCE, verbose=False)]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises its own developers
        model.fit(x, target, categorical_feature=codes or "auto", **more)
    told = {
        "train_rows": len(x), "features": x.shape[1], "learning_rate": RATE,
        "trees": int(model.best_iteration_ or model.n_estimators_) if stops else FEW_TREES,
        "trees_chosen_on": "validation rows" if stops else "nothing; the default",
        "version": made.__version__,
    }  # fmt: skip
    return model, asked, told


BASELINES = {
    "prior": prior,
    "linear-regression": linear_regression,
    "lightgbm": lightgbm,
    "lightgbm-regressor": lightgbm_regressor,
}
