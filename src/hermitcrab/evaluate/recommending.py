"""Baselines of recommendation: what everybody takes, what is like what one took, and `implicit`'s alternating least squares.

All rank the same items for the same users as the model does (`tasks.catalog.judged` through the task), and none looks at content: to
them an item that no training row has is as good as any other. Ratings are predicted by biases (Koren et al. 2009), where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import needs
from hermitcrab.evaluate.baseline import Baseline
from hermitcrab.evaluate.ranking import ndcg

if TYPE_CHECKING:
    import pyarrow as pa

NEIGHBORS = 50
SHRINK = 5.0  # rows that a bias is drawn back to zero by
GRID = [(32, 0.01, 1.0), (32, 0.1, 10.0), (64, 0.1, 1.0), (64, 0.1, 10.0)]  # factors, regularization, alpha


def _matrix(task: Any, train: pa.Table, fitted: dict[str, Any]) -> Any:
    """Who liked what in the training rows: a sparse matrix of ones, users by items."""
    from scipy.sparse import csr_matrix

    users, items = task.positions_of(train, fitted)
    liked = np.array(
        [r is None or fitted["relevant"] is None or r >= fitted["relevant"] for r in train["rating"].to_pylist()]
    )
    shape = (len(fitted["users"]), len(fitted["items"]))
    made = csr_matrix((np.ones(int(liked.sum()), np.float32), (users[liked], items[liked])), shape=shape)
    made.data[:] = 1  # one that was liked twice is liked
    return made


def _biases(task: Any, train: pa.Table, test: pa.Table, fitted: dict[str, Any]) -> list[float | None]:
    """Mean, and what user and item add to it, drawn back to zero by `SHRINK` rows."""
    if fitted["relevant"] is None:
        return [None] * test.num_rows
    users, items = task.positions_of(train, fitted)
    rating = np.array([np.nan if r is None else r for r in train["rating"].to_pylist()], dtype=np.float64)
    known = ~np.isnan(rating)
    users, items, rest = users[known], items[known], rating[known] - fitted["mean"]

    def bias(index: np.ndarray, rest: np.ndarray, count: int) -> np.ndarray:
        sums, rows = np.bincount(index, rest, count + 1), np.bincount(index, minlength=count + 1)
        return sums / (rows + SHRINK)  # the last is of whom nobody knows: zero

    of_item = bias(items, rest, len(fitted["items"]))
    of_user = bias(users, rest - of_item[items], len(fitted["users"]))
    asked_users, asked_items = task.positions_of(test, fitted)
    return (fitted["mean"] + of_user[asked_users] + of_item[asked_items]).tolist()


def _answered(task: Any, train: pa.Table, test: pa.Table, fitted: dict[str, Any], score: Any, told: dict[str, Any],
              ratings: bool = True) -> Baseline:  # fmt: skip
    """`score(user place) -> float [known items]`."""

    def of_all(user: int, made: Any) -> np.ndarray:
        return np.concatenate([score(user), np.full(made.cold, -1e30)])

    columns = task.judged(test, fitted, of_all)
    said = _biases(task, train, test, fitted) if ratings else [None] * test.num_rows
    return Baseline(said, [None] * test.num_rows, {"train_rows": train.num_rows, **told}, columns)


def popularity(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    fitted = task.fit(train, {}, None)
    counts = np.asarray(_matrix(task, train, fitted).sum(axis=0)).ravel()
    return _answered(task, train, test, fitted, lambda user: counts, {"ranks_by": "users who liked it"})


def item_knn(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    """Cosine of who liked them; of each item the nearest `NEIGHBORS` (Sarwar et al. 2001, doi:10.1145/371920.372071)."""
    fitted = task.fit(train, {}, None)
    liked = _matrix(task, train, fitted)
    norms = np.sqrt(np.asarray(liked.sum(axis=0)).ravel())
    unit = liked.multiply(1 / np.maximum(norms, 1)).tocsr()
    near = (unit.T @ unit).tocsr()
    near.setdiag(0)
    for row in range(near.shape[0]):
        values = near.data[near.indptr[row] : near.indptr[row + 1]]
        if len(values) > NEIGHBORS:
            values[values < np.partition(values, -NEIGHBORS)[-NEIGHBORS]] = 0
    near.eliminate_zeros()
    near, counts = near.T.tocsr(), np.asarray(liked.sum(axis=0)).ravel()
    told = {"neighbors": NEIGHBORS, "similarity": "cosine"}

    def score(user: int) -> np.ndarray:
        return counts if user < 0 else np.asarray((liked[user] @ near).todense()).ravel()

    return _answered(task, train, test, fitted, score, told)


def implicit_als(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    """Hu, Koren & Volinsky 2008, doi:10.1109/ICDM.2008.22, as `implicit` has it; of `GRID` the setting that ranks validation rows best.
    It predicts no ratings."""
    als = needs("implicit.als", "baselines")
    fitted = task.fit(train, {}, None)
    liked = _matrix(task, train, fitted)
    counts = np.asarray(liked.sum(axis=0)).ravel()

    def fit(factors: int, regularization: float, alpha: float) -> Any:
        model = als.AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, num_threads=1, random_state=0
        )
        model.fit(liked, show_progress=False)
        users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)
        return lambda user: counts if user < 0 else items @ users[user]

    tried = {}
    for setting in GRID if validation.num_rows else GRID[:1]:
        score = fit(*setting)
        columns = task.judged(
            validation, fitted, lambda user, made, score=score: np.concatenate([score(user), np.full(made.cold, -1e30)])
        )
        users: dict[str, list[int]] = {}
        for user, rank, good in zip(columns["document"], columns["rank"], columns["liked"], strict=True):
            if good:
                users.setdefault(user, []).append(rank)
        tried[setting] = (float(np.mean([ndcg(ranks) for ranks in users.values()])) if users else 0.0), score
    best = max(tried, key=lambda setting: tried[setting][0])
    told = {
        "factors": best[0], "regularization": best[1], "alpha": best[2],
        "chosen_on": "validation rows" if validation.num_rows else "nothing; the first",
        "validation_ndcg@10": {str(setting): value for setting, (value, _) in tried.items()},
    }  # fmt: skip
    return _answered(task, train, test, fitted, tried[best][1], told, ratings=False)


BASELINES = {"popularity": popularity, "item-knn": item_knn, "implicit-als": implicit_als}
