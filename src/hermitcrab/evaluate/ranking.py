"""Metrics of rankings, one list a user: a user's sums stand on the first of its rows, and whole users are resampled.

`rank` is the place of a row's item among all that its user has not seen (from 1), `liked` says whether it should have been recommended.
A user of whom no test row was liked says nothing, and counts nowhere. nDCG as scikit-learn's `ndcg_score(k=10)` with relevance 0 or 1
(Järvelin & Kekäläinen 2002, doi:10.1145/582415.582418), recall as torchmetrics' `retrieval_recall(top_k=10)`; both are means over users.

Shapes: N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hermitcrab.evaluate.answers import Answers
from hermitcrab.evaluate.metric import Metric
from hermitcrab.evaluate.statistics import Floats

K = 10


def ndcg(ranks: list[int]) -> float:
    """Of one user, from the places of the items that were liked."""
    gained = sum(1 / np.log2(1 + rank) for rank in ranks if rank <= K)
    best = sum(1 / np.log2(1 + place) for place in range(1, min(K, len(ranks)) + 1))
    return float(gained / best)


def recall(ranks: list[int]) -> float:
    return sum(rank <= K for rank in ranks) / len(ranks)


def by_user(column: str, of: Callable[[list[int]], float]) -> Callable[[Answers, Sequence[str]], Floats]:
    """Rows: the user's figure and 1 on its first row, 0 on all others -> float64 N x 2."""

    def rows(answers: Answers, labels: Sequence[str]) -> Floats:
        users: dict[object, list[int]] = {}
        groups = answers.groups or answers.row_ids
        ranks, liked = answers.column(column), answers.column("liked")
        for n, (user, rank, good) in enumerate(zip(groups, ranks, liked, strict=True)):
            if good and rank is not None and rank == rank:  # NaN: no place in this list
                users.setdefault(user, []).append(n)
        sums_N2 = np.zeros((len(answers), 2))
        for places in users.values():
            sums_N2[places[0]] = of([int(ranks[n]) for n in places]), 1
        return sums_N2

    return rows


def mean(total_R2: Floats) -> Floats:
    """Over users; NaN where a resample has none."""
    return np.divide(total_R2[:, 0], total_R2[:, 1], out=np.full(len(total_R2), np.nan), where=total_R2[:, 1] > 0)


METRICS = (
    Metric(name="ndcg@10", needs=("rank", "liked"), rows=by_user("rank", ndcg), values=mean),
    Metric(name="recall@10", needs=("rank", "liked"), rows=by_user("rank", recall), values=mean),
    # among the items that no training row has, of which only content is known
    Metric(name="cold_recall@10", needs=("cold_rank", "liked"), rows=by_user("cold_rank", recall), values=mean),
)
