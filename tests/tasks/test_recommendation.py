"""Recommendation: what is fitted, how places in a ranking are told, and metrics and baselines by hand."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.answers import read
from hermitcrab.evaluate.metrics import measure, value_of
from hermitcrab.evaluate.recommending import item_knn, popularity
from hermitcrab.models.architectures import complete
from hermitcrab.models.architectures.recommender import Recommender
from hermitcrab.tasks import catalog
from hermitcrab.tasks.recommendation import Recommendation


def rows(*interactions: tuple[str, str, float | None], year: int | None = None) -> pa.Table:
    genres = [f"Drama|{'A' if item < 'c' else 'B'}" for _, item, _ in interactions]
    features = [
        json.dumps({"genres": g, "year": year or 1900 + ord(i[0])})
        for g, (_, i, _) in zip(genres, interactions, strict=True)
    ]
    users, items, ratings = zip(*interactions, strict=True)
    return pa.table({"row_id": [f"{i:016x}" for i in range(len(users))], "user": users, "item": items,
                     "rating": pa.array(ratings, pa.float64()), "time": list(range(len(users))), "features": features})  # fmt: skip


NONE = pa.array([None] * 180, pa.float64())
TRAIN = rows(("u", "a", 5), ("u", "b", 4), ("v", "a", 4), ("v", "c", 1), ("w", "a", 5), ("w", "b", None), ("w", "d", 2))


def test_what_is_fitted_names_no_user_and_reads_content():
    fitted = catalog.fit(TRAIN)
    assert fitted["items"] == ["a", "b", "c", "d"]
    assert not {"u", "v", "w"} & set(fitted["users"])
    assert [len(seen) for seen in fitted["seen"]] == [len(fitted["seen"][i]) for i in range(3)]
    assert fitted["relevant"] == 4.0
    assert {"genres=Drama", "genres=A", "genres=B"} <= set(fitted["tokens"])
    Recommendation.check_fitted(fitted, "here")
    for change in ({"seen": [[9], [], []]}, {"users": []}, {"content": [[0]]}, {"items": [1, 2, 3, 4]}, {"extra": 1}):
        with pytest.raises(HermitcrabError, match="fitted: "):
            Recommendation.check_fitted({**fitted, **change}, "here")


def test_a_place_is_among_what_the_user_has_not_seen_and_cold_items_have_one_of_their_own():
    scores = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 5.0])
    assert catalog.ranks(scores, [2, 4, 5], [0], 2) == [(2, None), (4, 1), (5, 2)]
    assert catalog.ranks(scores, [1], [], 0) == [(2, None)]


def test_metrics_of_rankings_are_scikit_learns_and_users_are_the_groups():
    from sklearn.metrics import ndcg_score

    draw = np.random.default_rng(0)
    users, ranks, liked, wanted, hits = [], [], [], [], []
    for user in range(30):
        places = draw.permutation(40)[:6] + 1
        good = draw.integers(0, 2, 6).astype(bool)
        users += [f"user {user}"] * 6
        ranks += places.tolist()
        liked += good.tolist()
        if good.any():
            relevance = np.zeros((1, 40))
            relevance[0, places[good] - 1] = 1
            wanted.append(ndcg_score(relevance, -np.arange(40)[None].astype(float), k=10))
            hits.append((places[good] <= 10).mean())
    table = pa.table({"row_id": [f"{i:06d}" for i in range(180)], "reference": [1.0] * 180, "prediction": NONE,
                      "document": users, "rank": ranks, "cold_rank": pa.array([None] * 180, pa.int64()), "liked": liked})  # fmt: skip
    answers = read(table, "m")
    assert value_of("ndcg@10", answers, ()) == pytest.approx(np.mean(wanted))
    assert value_of("recall@10", answers, ()) == pytest.approx(np.mean(hits))
    told = measure(table, ["ndcg@10", "cold_recall@10", "root_mean_squared_error"], model="m", resamples=200)
    assert [m["name"] for m in told] == ["ndcg@10"]
    assert told[0]["low"] < told[0]["value"] < told[0]["high"]


def test_popularity_ranks_what_was_liked_by_most_and_neighbors_what_is_like_it():
    test = rows(("v", "b", 5), ("u", "c", 1), ("u", "e", 5), ("nobody", "a", 5))
    found = popularity(Recommendation, TRAIN, TRAIN.slice(0, 0), test)
    assert found.columns["rank"] == [1, 1, 3, 1]  # of v: a is seen, b is liked by two
    assert found.columns["cold_rank"] == [None, None, 1, None]
    assert found.columns["liked"] == [True, False, True, True]
    assert len(set(found.columns["document"])) == 3
    assert all(1 <= rating <= 5 for rating in found.predictions)
    near = item_knn(Recommendation, TRAIN, TRAIN.slice(0, 0), test)
    assert near.columns["rank"][0] == 1  # b was liked by those who liked a, as v did


def test_an_item_that_nobody_has_rated_is_told_apart_by_its_content():
    torch.manual_seed(0)
    fitted = catalog.fit(TRAIN)
    model = Recommender(
        complete({"model_type": "two-tower", "hidden_size": 8}, ""), 3, 4, len(fitted["tokens"]), 3.0
    ).eval()
    made = catalog.catalog(fitted, {"x": {"genres": "Drama|A"}, "y": {"genres": "B"}, "z": {}})
    assert (made.items[-3:], made.cold) == (["x", "y", "z"], 3)
    hot = torch.from_numpy(made.hot_IT)
    scores = model.taken(torch.tensor([0, -1]), hot)
    assert scores.shape == (2, 7)
    assert scores[0, 4] != scores[0, 5]
    assert scores[0, 6] == 0
    assert float(model.rating(torch.tensor([-1]), torch.tensor([6]), hot)) == 3.0
    plain = Recommender(complete({"model_type": "matrix-factorization"}, ""), 3, 4, 2, 3.0).eval()
    assert not plain.taken(torch.tensor([0]), hot)[0, 4:].any()
