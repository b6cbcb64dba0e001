"""What a recommender takes from training rows before any weight is learnt: users, items with their content, and who has seen what.

    users     each by a digest of its name: a package names nobody
    items     as the rows name them; `content`: for each its tokens, of `tokens` (`genres=Drama`, `year#3`)
    seen      for each user the items of its training rows, which are not recommended again
    relevant  the rating from which on an item was liked: the median of the training ratings (null: there are none, all were)

Shapes: N rows, U users, I items, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    import pyarrow as pa

BINS = 8  # of a feature that is a number
FEWEST = 2  # items that a token must stand with to be one


def name_of(user: str) -> str:
    return hashlib.sha256(user.encode()).hexdigest()[:12]


def contents(rows: pa.Table) -> dict[str, dict[str, Any]]:
    """Item → its features, of the first row that has some."""
    found: dict[str, dict[str, Any]] = {}
    for item, text in zip(rows["item"].to_pylist(), rows["features"].to_pylist(), strict=True):
        if not found.get(item):
            found[item] = json.loads(text) or {}
    return found


def fit(rows: pa.Table) -> dict[str, Any]:
    users = sorted({name_of(user) for user in rows["user"].to_pylist()})
    features = contents(rows)
    items = sorted(features)
    edges = _edges(features.values())
    words = [list(tokens_of(features[item], edges)) for item in items]
    counts = Counter(token for tokens in words for token in set(tokens))
    tokens = sorted(token for token, count in counts.items() if count >= FEWEST)
    index, who = {token: i for i, token in enumerate(tokens)}, {user: i for i, user in enumerate(users)}
    place = {item: i for i, item in enumerate(items)}
    seen: list[set[int]] = [set() for _ in users]
    for user, item in zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True):
        seen[who[name_of(user)]].add(place[item])
    ratings = np.array([rating for rating in rows["rating"].to_pylist() if rating is not None], dtype=np.float64)
    return {
        "users": users, "items": items, "tokens": tokens, "edges": edges,
        "content": [sorted({index[token] for token in found if token in index}) for found in words],
        "seen": [sorted(places) for places in seen],
        "relevant": float(np.median(ratings)) if len(ratings) else None,
        "mean": float(ratings.mean()) if len(ratings) else 0.0,
    }  # fmt: skip


def _edges(features: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """Of each feature that is a number, the edges of its bins."""
    numbers: dict[str, list[float]] = {}
    for record in features:
        for name, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(name, []).append(float(value))
    return {
        name: np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])).tolist()
        for name, values in numbers.items()
    }


def tokens_of(record: dict[str, Any], edges: dict[str, list[float]]) -> Iterable[str]:
    """`genres: Drama|Crime` is two tokens, a number is its bin."""
    for name, value in sorted(record.items()):
        if value is None:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            if name in edges:
                yield f"{name}#{int(np.searchsorted(edges[name], value, side='right'))}"
        else:
            yield from (f"{name}={part.strip()}" for part in str(value).split("|") if part.strip())


def check(fitted: dict[str, Any], where: str) -> None:
    """Refuse (HermitcrabError) what `fit` could not have made: a record may be a stranger's."""
    users, items, tokens, content, seen = (fitted[key] for key in ("users", "items", "tokens", "content", "seen"))

    def places(lists: Any, count: int, below: int) -> bool:
        return len(lists) == count and all(
            isinstance(found, list) and all(type(i) is int and 0 <= i < below for i in found) for found in lists
        )

    names = all(isinstance(part, str) for part in [*users, *items, *tokens])
    if not (
        users and items and names and places(content, len(items), len(tokens)) and places(seen, len(users), len(items))
    ):
        raise HermitcrabError(f"{where}: fitted: users, items and what was seen are not as they are fitted to ratings")


@dataclass(frozen=True)
class Catalog:
    """Every item that can be recommended: those of the training rows, then `new` ones that rows or a user bring.

    Attributes:
        place: item → 0 … I-1; `cold`: how many items, from the end, no training row has.
        hot_IT: float32, its tokens, each row summing to 1 (or 0 where an item has none).
    """

    items: list[str]
    place: dict[str, int]
    cold: int
    hot_IT: np.ndarray


def catalog(fitted: dict[str, Any], new: dict[str, dict[str, Any]] | None = None) -> Catalog:
    known = fitted["items"]
    place = {item: i for i, item in enumerate(known)}
    added = sorted((new or {}).keys() - place.keys())
    index = {token: i for i, token in enumerate(fitted["tokens"])}
    content = [*fitted["content"]]
    for item in added:
        content.append([index[t] for t in tokens_of((new or {})[item], fitted["edges"]) if t in index])
    hot_IT = np.zeros((len(content), len(index)), np.float32)
    for i, found in enumerate(content):
        hot_IT[i, found] = 1 / max(1, len(found))
    return Catalog([*known, *added], place | {item: len(known) + i for i, item in enumerate(added)}, len(added), hot_IT)


def ranks(score_I: np.ndarray, wanted: Sequence[int], seen: Sequence[int], cold: int) -> list[tuple[int, int | None]]:
    """Of each wanted item its place (from 1) among all but the seen ones, and, of a cold one, among the cold. Of equal scores, the
    one that stands first in the catalog is first."""
    score_I = score_I.astype(np.float64, copy=True)
    score_I[[i for i in seen if i not in set(wanted)]] = -np.inf
    order_I = np.empty(len(score_I), np.int64)
    order_I[np.argsort(-score_I, kind="stable")] = np.arange(1, len(score_I) + 1)
    first = len(score_I) - cold
    cold_order = np.empty(cold, np.int64)
    cold_order[np.argsort(-score_I[first:], kind="stable")] = np.arange(1, cold + 1)
    return [(int(order_I[i]), int(cold_order[i - first]) if i >= first else None) for i in wanted]


def judged(rows: pa.Table, fitted: dict[str, Any], score: Any) -> dict[str, list[Any]]:
    """`rank`, `cold_rank`, `liked` and `document` (the user, by its digest) of each row; `score(user place, catalog) -> float [I]`, of
    an unknown user with place -1."""
    made = catalog(fitted, contents(rows))
    who = {user: i for i, user in enumerate(fitted["users"])}
    names = [name_of(user) for user in rows["user"].to_pylist()]
    items = [made.place[item] for item in rows["item"].to_pylist()]
    by_user: dict[str, list[int]] = {}
    for n, name in enumerate(names):
        by_user.setdefault(name, []).append(n)
    found: list[tuple[int, int | None]] = [(0, None)] * len(names)
    for name, places in by_user.items():
        user = who.get(name, -1)
        seen = fitted["seen"][user] if user >= 0 else []
        told = ranks(score(user, made), [items[n] for n in places], seen, made.cold)
        for n, rank in zip(places, told, strict=True):
            found[n] = rank
    liked = [fitted["relevant"] is None or r is None or r >= fitted["relevant"] for r in rows["rating"].to_pylist()]
    return {"rank": [r for r, _ in found], "cold_rank": [c for _, c in found], "liked": liked, "document": names}
