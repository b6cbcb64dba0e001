"""Training, validation and test rows: drawn by a seeded hash of what they say, so neither order nor files decide.

Rows of one document stay together; rows without a document go by their folded text, so no text is on both sides. Test
is drawn first, so asking for more or fewer validation rows leaves it as it was. All of it is decided on keys (`data.segment` makes them).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from hermitcrab.data.census import TRAIN, Census, apart, numbered
from hermitcrab.data.scratch import RANKS, id_text
from hermitcrab.errors import HermitcrabError, did_you_mean
from hermitcrab.progress import say
from hermitcrab.recipe import Split


def choose(sizes: Mapping[bytes, int], wanted: int) -> set[bytes]:
    """Groups that together have `wanted` rows, or as near to that as whole groups come in the order of their names, which are draws."""
    chosen, left = set[bytes](), wanted
    order = sorted(sizes)
    for group in order:
        if not left:
            return chosen
        if sizes[group] <= left:
            chosen.add(group)
            left -= sizes[group]
    rest = min((group for group in order if group not in chosen), key=sizes.__getitem__, default=None)
    if left and rest is not None and sizes[rest] - left < left:
        chosen.add(rest)
    return chosen


def _wanted(asked: int | float, rows: int) -> int:
    return asked if isinstance(asked, int) else round(asked * rows)


def hold_out(census: Census, part: Split, given: Collection[str]) -> dict[str, Any]:
    """Move validation and test rows out of training rows, but for given splits. Returns what was asked and got.

    Raises:
        HermitcrabError: when more rows are asked for than there are, or none would be left to train on.
    """
    rows = np.flatnonzero(census.alive_N & (census.home_N == TRAIN))
    wanted = {s: _wanted(getattr(part, s), len(rows)) for s in ("test", "validation") if s not in given}
    if sum(wanted.values()) >= max(len(rows), 1):
        asked = " and ".join(f"{count:,} {split}" for split, count in wanted.items())
        raise HermitcrabError(
            f"data.split asks for {asked} rows, but the training source has {len(rows):,} after cleaning "
            f"({sum(census.why().values()):,} were dropped) and some must be left to train on; ask for fewer or give more"
        )
    if not any(wanted.values()):
        return {split: {"asked": 0, "got": 0} for split in wanted}
    if part.by is not None:
        return _hold_out_last(census, part, rows, wanted)
    keys_R = census.keys["group"][rows]
    number_R = numbered(keys_R)
    name_G = np.empty(number_R.max() + 1, keys_R.dtype)
    name_G[number_R] = keys_R
    sizes = dict(zip(map(bytes, name_G), np.bincount(number_R).tolist(), strict=True))
    numbers, told = {name: number for number, name in enumerate(sizes)}, {}
    for split, count in wanted.items():
        chosen = choose(sizes, count)
        held = np.isin(number_R, [numbers[name] for name in chosen])
        census.home_N[rows[held]] = RANKS.index(split)
        got = int(held.sum())
        for name in chosen:
            del sizes[name]
        told[split] = {"asked": count, "got": got}
        if got != count:
            say(f"{split} rows: {got:,} where {count:,} were asked, as documents and repeated texts are not cut")
    return told


def check_columns(part: Split, columns: Collection[str]) -> None:
    """That rows have the columns that the split goes by.

    Raises:
        HermitcrabError: they do not.
    """
    for key in ("by", "within"):
        name = getattr(part, key)
        if name is not None and name not in columns:
            raise HermitcrabError(
                f"data.split.{key}: rows of this format have no column `{name}`{did_you_mean(name, columns)}"
            )


def _hold_out_last(census: Census, part: Split, rows: np.ndarray, wanted: Mapping[str, int]) -> dict[str, Any]:
    """The rows with the largest numbers in a column are held out, test behind validation; with `within`, of each of its values.

    Raises:
        HermitcrabError: one of them has no number there.
    """
    number_R = census.keys["by"][rows]
    if np.isnan(number_R).any():
        first = id_text(census.id_N[rows[np.isnan(number_R)]].min())
        raise HermitcrabError(f"data.split.by: row {first} has no number in `{part.by}`; expected one in every row")
    value_R = numbered(census.keys["within"][rows]) if part.within else np.zeros(len(rows), np.int64)
    order = np.lexsort((census.id_N[rows], number_R, value_R))
    groups, told = np.split(rows[order], np.flatnonzero(np.diff(value_R[order])) + 1), {}
    for split, count in wanted.items():  # test first: the very last
        got = 0
        for i, group in enumerate(groups):
            share = round(count * len(group) / len(rows)) if part.within else count
            left = max(0, len(group) - share)
            census.home_N[group[left:]] = RANKS.index(split)
            groups[i], got = group[:left], got + len(group) - left
        told[split] = {"asked": count, "got": got}
        if got != count:
            say(f"{split} rows: {got:,} where {count:,} were asked, the last by `{part.by}` within `{part.within}`")
    return told


def take(census: Census, count: int) -> None:
    """Draw `count` training rows; the others are dropped and counted.

    Raises:
        HermitcrabError: when there are not so many.
    """
    rows = np.flatnonzero(census.alive_N & (census.home_N == TRAIN))
    if count > len(rows):
        raise HermitcrabError(
            f"data.take asks for {count:,} training rows, but there are {len(rows):,} after cleaning and splitting"
        )
    half_R2 = census.keys["take"][rows].view(">u8").reshape(-1, 2)
    order = np.lexsort((census.id_N[rows], half_R2[:, 1], half_R2[:, 0]))
    census.drop(rows[order[count:]], f"not drawn: take is {count}")


def prove_apart(census: Census, key: str = "fold") -> None:
    """That no held-out text stands in training data, and no test text in validation data; by that key of their texts.

    Raises:
        HermitcrabError: how many do, the first of them, and what to do.
    """
    places, ranks = apart(census, key)
    if len(places):
        home_M = census.home_N[places]
        here = home_M == home_M[0]  # by rank: the first split that has some
        raise HermitcrabError(
            f"{int(here.sum()):,} {RANKS[home_M[0]]} rows stand in {RANKS[ranks[0]]} data too, the first is row "
            f"{id_text(census.id_N[places[0]])}; add `decontaminate` to data.clean, which drops and counts them"
        )
