"""What no neural network is needed for: the commonest answer, and logistic regression on words or on numbers.

A fine-tuned model that does not beat these on the same rows has shown nothing. Both are deterministic, and tell what
they were fitted on.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.evaluate import forecasting, recommending, tables, translating
from hermitcrab.evaluate.baseline import Baseline
from hermitcrab.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # inverse regularization strengths, tried from strong to weak


def majority(train: Sequence[str], test: Sequence[Any]) -> Baseline:
    """The commonest training label (the first in the alphabet where several are) for every row of `test`."""
    if not train:
        raise HermitcrabError("the baseline `majority` has no training rows to count")
    counts = Counter(train)
    label = min(counts, key=lambda name: (-counts[name], name))
    return Baseline(
        [label] * len(test),
        [None] * len(test),
        {"train_rows": len(train), "label": label, "share_in_training": counts[label] / len(train)},
    )


def mean(train: Sequence[float], test: Sequence[Any]) -> Baseline:
    """The mean of the training rows for every row of `test`."""
    if not train:
        raise HermitcrabError("the baseline `mean` has no training rows")
    value = float(np.mean(train))
    return Baseline([value] * len(test), [None] * len(test), {"train_rows": len(train), "mean": value})


def tfidf_logreg(
    train_texts: Sequence[str],
    train_labels: Sequence[str],
    texts: Sequence[str],
    *,
    validation_texts: Sequence[str] = (),
    validation_labels: Sequence[str] = (),
) -> Baseline:
    """Logistic regression on TF-IDF of words and word pairs, fitted on the training rows.

    The regularization is the one of `GRID` that answers most validation rows rightly (the strongest where several do);
    without validation rows it is 1. Validation rows choose and are not fitted on.

    Raises:
        HermitcrabError: fewer than two labels or no word in the training rows, or scikit-learn is not installed.
    """
    if len(set(train_labels)) < 2:
        raise HermitcrabError(
            "the baseline `tfidf-logreg` needs training rows of at least two labels. "
            f"Received: {', '.join(sorted(set(train_labels))) or 'none'}"
        )
    vectorizer = needs("sklearn.feature_extraction.text", "train").TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True
    )
    regression = needs("sklearn.linear_model", "train").LogisticRegression
    try:
        train_x = vectorizer.fit_transform(train_texts)
    except ValueError as error:  # no text holds a word
        raise HermitcrabError(f"the baseline `tfidf-logreg` cannot read the training texts: {error}") from error

    def fit(strength: float) -> Any:
        return regression(C=strength, max_iter=2000, tol=1e-6).fit(train_x, train_labels)

    chosen, tried = (fit(1.0), 1.0), {}
    if validation_texts:
        held_x, best = vectorizer.transform(validation_texts), -1.0
        with progress("tfidf-logreg", len(GRID), "settings") as bar:
            for strength in GRID:
                model = fit(strength)
                tried[str(strength)] = accuracy = float((model.predict(held_x) == list(validation_labels)).mean())
                if accuracy > best:
                    chosen, best = (model, strength), accuracy
                bar.add()
    model, strength = chosen
    log_p_NC = model.predict_log_proba(vectorizer.transform(texts)) if texts else []
    return Baseline(
        [str(model.classes_[row.argmax()]) for row in log_p_NC],
        [float(row.max()) for row in log_p_NC],
        {
            "train_rows": len(train_texts),
            "features": train_x.shape[1],
            "ngrams": "words, 1-2",
            "C": strength,
            "C_chosen_on": "validation rows" if tried else "nothing; the default",
            "validation_rows": len(validation_texts),
            "validation_accuracy": tried,
        },
    )


def logistic_regression(
    train: np.ndarray, asked: np.ndarray, train_labels: Sequence[str], max_iter: int = 100
) -> Baseline:
    """Multinomial logistic regression on numbers, standardized by the training rows as a whole.

    Args:
        train: float32 [N, D]; asked: float32 [M, D].

    Raises:
        HermitcrabError: fewer than two labels, or scikit-learn is not installed.
    """
    if len(set(train_labels)) < 2:
        raise HermitcrabError(
            "the baseline `logistic-regression` needs training rows of at least two labels. "
            f"Received: {', '.join(sorted(set(train_labels))) or 'none'}"
        )
    regression = needs("sklearn.linear_model", "train").LogisticRegression
    mean, scale = float(train.mean()), float(train.std()) or 1.0
    # tol 1e-3: a hundred thousand weights settle in no hundred steps, and the answers long before the weights do.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lbfgs failed to converge")  # told below
        model = regression(C=1.0, max_iter=max_iter, tol=1e-3).fit((train - mean) / scale, train_labels)
    log_p_NC = model.predict_log_proba((asked - mean) / scale) if len(asked) else []
    return Baseline(
        [str(model.classes_[row.argmax()]) for row in log_p_NC],
        [float(row.max()) for row in log_p_NC],
        {
            "train_rows": len(train_labels),
            "features": int(train.shape[1]),
            "C": 1.0,
            "C_chosen_on": "nothing; the default",
            "iterations": int(np.max(model.n_iter_)),
            "converged": bool(np.max(model.n_iter_) < max_iter),
        },
        {"scores": [row.tolist() for row in log_p_NC]},
    )


def _majority(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    return majority(task.answers(train), task.answers(test))


def _mean(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    return mean(task.answers(train), task.answers(test))


def _tfidf_logreg(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    return tfidf_logreg(task.features(train), task.answers(train), task.features(test),
                        validation_texts=task.features(validation), validation_labels=task.answers(validation))  # fmt: skip


def _logistic_regression(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    learnt, asked = task.learnt_features(train, test)
    return logistic_regression(learnt, asked, task.answers(train))


BASELINES: dict[str, Callable[[Any, Any, Any, Any], Baseline]] = {
    "majority": _majority,
    "mean": _mean,
    "tfidf-logreg": _tfidf_logreg,
    "logistic-regression": _logistic_regression,
    **tables.BASELINES,
    **recommending.BASELINES,
    **forecasting.BASELINES,
    **translating.BASELINES,
}
"""By their names in a recipe: (task, training, validation and test rows) -> answers to the test rows. A task brings its own
(`own_baselines`)."""
