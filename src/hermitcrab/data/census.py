"""Who is still there: ids and keys of all rows, without their texts. What compares rows is decided here, so that no engine decides it.

N rows, sorted by the split that they came in (test, validation, train) and id. Every choice goes by rank: the split that a row is in by
now, then the smallest id. A key is 16 bytes, a digest of what is compared (`data.fold.keys`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.scratch import RANKS, id_text

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN = RANKS.index("train")
_OTHER_ANSWER = {
    "image-label": "same image, other label",
    "text-label": "same text, other label",
    "tabular": "same record, other target",
}


@dataclass
class Census:
    """Of N rows.

    Attributes:
        id_N: uint64; split_N: uint8, the split that a row came in, as its rank; home_N: uint8, the one it is in by now.
        alive_N: bool; reason_N: int16, into `reasons`, of those that are not; -1 of others.
        keys: name → what `Segment` computed of each row.
        gone: rows that filters dropped before: (id, split) → reason, as arrays like the ones above.
        pairs: what a row was dropped for: filter, row, the row that stays, similarity.
    """

    id_N: np.ndarray
    split_N: np.ndarray
    home_N: np.ndarray
    alive_N: np.ndarray
    keys: dict[str, Any]
    reasons: list[str] = field(default_factory=list)
    reason_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))
    gone: list[tuple[np.ndarray, np.ndarray, list[str]]] = field(default_factory=list)
    pairs: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def read(cls, keys: pa.Table, gone: pa.Table, before: Census | None = None) -> Census:
        """From what a pass left; a row that moved to held-out rows before is there still."""
        id_N, split_N = (keys.column(name).to_numpy() for name in ("id", "split"))
        order = np.lexsort((id_N, split_N))
        id_N, split_N, rest = (
            id_N[order],
            split_N[order],
            keys.drop_columns(["id", "split"]).take(order).combine_chunks(),
        )
        columns = {name: _column(rest.column(name).combine_chunks()) for name in rest.column_names}
        home_N = split_N.copy()
        lost_id, lost_split = (gone.column(name).to_numpy() for name in ("id", "split"))
        if before is not None:
            home_N = before.home_N[before.find(id_N, split_N)]
            lost_split = before.home_N[before.find(lost_id, lost_split)]
        made = cls(id_N, split_N, home_N, np.ones(len(id_N), bool), columns, reason_N=np.full(len(id_N), -1, np.int16))
        made.gone = [
            *(before.told() if before is not None else []),
            (lost_id, lost_split, gone.column("reason").to_pylist()),
        ]
        return made

    def __len__(self) -> int:
        return len(self.id_N)

    def find(self, id_M: np.ndarray, split_M: np.ndarray) -> np.ndarray:
        """Places of rows by id and the split that they came in; all of them are there."""
        place_M = np.empty(len(id_M), np.int64)
        for rank in range(len(RANKS)):
            first, last = np.searchsorted(self.split_N, [rank, rank + 1])
            here = split_M == rank
            place_M[here] = first + np.searchsorted(self.id_N[first:last], id_M[here])
        return place_M

    def ranked(self) -> np.ndarray:
        """Places of the rows that are left, by rank."""
        order = np.lexsort((self.id_N, self.home_N))
        return order[self.alive_N[order]]

    def drop(self, places: np.ndarray, reason: str) -> None:
        if len(places):
            if reason not in self.reasons:
                self.reasons.append(reason)
            self.alive_N[places] = False
            self.reason_N[places] = self.reasons.index(reason)

    def count(self, rank: int) -> int:
        return int((self.alive_N & (self.home_N == rank)).sum())

    def told(self) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        """All that were dropped so far: ids, splits that they were in, reasons."""
        dead = np.flatnonzero(~self.alive_N)
        mine = (self.id_N[dead], self.home_N[dead], [self.reasons[i] for i in self.reason_N[dead]])
        return [*self.gone, mine] if len(dead) else self.gone

    def dropped(self) -> list[tuple[str, str, str]]:
        """Row id, split and reason of each row that was dropped, sorted."""
        return sorted(
            (id_text(number), RANKS[split], reason)
            for id_M, split_M, reasons in self.told()
            for number, split, reason in zip(id_M, split_M, reasons, strict=True)
        )

    def why(self) -> Counter[tuple[str, str]]:
        """How many rows were dropped, by split and reason."""
        found = Counter[tuple[str, str]]()
        for _, split_M, reasons in self.told():
            found.update(zip((RANKS[split] for split in split_M), reasons, strict=True))
        return found

    def save(self, folder: Path) -> None:
        """For the next pass, wherever it runs."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("id_N", "split_N", "home_N", "alive_N"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Census:
        id_N, split_N, home_N, alive_N = (
            np.load(folder / f"{name}.npy") for name in ("id_N", "split_N", "home_N", "alive_N")
        )
        return cls(id_N, split_N, home_N, alive_N, {})


def _column(column: Any) -> Any:
    """An Arrow column as numpy: bytes of one width as void, lists as (start, values)."""
    import pyarrow as pa

    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        return np.frombuffer(column.buffers()[1], f"V{width}")[column.offset : column.offset + len(column)]
    if pa.types.is_large_list(column.type):
        return column.offsets.to_numpy(), column.values.to_numpy()
    return column.to_numpy()


def numbered(key_N: np.ndarray) -> np.ndarray:
    """Equal keys by equal numbers: int64 [N]."""
    half_N2 = key_N.view(">u8").reshape(-1, 2)
    order = np.lexsort((half_N2[:, 1], half_N2[:, 0]))
    new = np.ones(len(order), bool)
    new[1:] = (half_N2[order[1:]] != half_N2[order[:-1]]).any(1)
    number_N = np.empty(len(order), np.int64)
    number_N[order] = np.cumsum(new) - 1
    return number_N


def exact(census: Census, format: str) -> None:
    """Of rows whose text, prompt or turns before the answer are equal in normal form, the first by rank stays.

    A question that is answered in two ways keeps one answer, and the others are counted as such.
    """
    ranked = census.ranked()
    number_R = numbered(census.keys["exact"][ranked])
    first_K = np.full(number_R.max(initial=-1) + 1, len(ranked))
    np.minimum.at(first_K, number_R, np.arange(len(ranked)))
    stays_R = first_K[number_R]
    later = np.flatnonzero(stays_R < np.arange(len(ranked)))
    said = census.keys["answer"][ranked]
    same = said[later] == said[stays_R[later]]
    census.drop(ranked[later[same]], "exact duplicate")
    census.drop(ranked[later[~same]], _OTHER_ANSWER.get(format, "same prompt, other completion"))
    census.pairs.append(("exact-dedup", ranked[later], ranked[stays_R[later]], np.ones(len(later))))


def apart(census: Census, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose key stands in a split of earlier rank too, by rank, and that rank."""
    ranked = census.ranked()
    number_R, home_R = numbered(census.keys[name][ranked]), census.home_N[ranked]
    least_K = np.full(number_R.max(initial=-1) + 1, len(RANKS))
    np.minimum.at(least_K, number_R, home_R)
    least_R = least_K[number_R]
    both = least_R < home_R
    return ranked[both], least_R[both]


def decontaminate(census: Census) -> None:
    """Drop training rows whose folded text stands in held-out data, and validation rows whose stands in test data."""
    places, ranks = apart(census, "fold")
    for rank in range(TRAIN):
        census.drop(places[ranks == rank], f"stands in {RANKS[rank]} data")
