"""Training, validation and test rows: drawn by a seeded hash of what they say, so neither order nor files decide.

Rows of one document stay together; rows without a document go by their folded text, so no text is on both sides. Test
is drawn first, so asking for more or fewer validation rows leaves it as it was.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hermitcrab.data.clean import fold, fold_keys
from hermitcrab.data.tables import Splits
from hermitcrab.errors import HermitcrabError, did_you_mean
from hermitcrab.progress import say
from hermitcrab.recipe import Split


def draw(seed: int, purpose: str, key: str) -> bytes:
    """Where `key` comes in an order that looks random and is the same everywhere."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{key}".encode()).digest()


def choose(sizes: Mapping[str, int], wanted: int, seed: int) -> set[str]:
    """Groups that together have `wanted` rows, or as near to that as whole groups come in the seed's order."""
    chosen, left = set[str](), wanted
    order = sorted(sizes, key=lambda group: draw(seed, "split", group))
    for group in order:
        if sizes[group] <= left:
            chosen.add(group)
            left -= sizes[group]
    rest = min((group for group in order if group not in chosen), key=sizes.__getitem__, default=None)
    if left and rest is not None and sizes[rest] - left < left:
        chosen.add(rest)
    return chosen


def _wanted(asked: int | float, rows: int) -> int:
    return asked if isinstance(asked, int) else round(asked * rows)


def hold_out(splits: Splits, part: Split, given: Collection[str]) -> dict[str, Any]:
    """Move validation and test rows out of training rows, but for given splits. Returns what was asked and got.

    Raises:
        HermitcrabError: when more rows are asked for than there are, or none would be left to train on.
    """
    table = splits.tables["train"]
    wanted = {s: _wanted(getattr(part, s), table.num_rows) for s in ("test", "validation") if s not in given}
    if sum(wanted.values()) >= max(table.num_rows, 1):
        asked = " and ".join(f"{count:,} {split}" for split, count in wanted.items())
        raise HermitcrabError(
            f"data.split asks for {asked} rows, but the training source has {table.num_rows:,} after cleaning "
            f"({len(splits.dropped):,} were dropped) and some must be left to train on; ask for fewer or give more"
        )
    if part.by is not None:
        return hold_out_last(splits, part, wanted)
    documents = table.column("document").to_pylist()
    groups = [
        f"document {document}" if document is not None else f"text {fold(text)}"
        for document, text in zip(documents, splits.questions("train"), strict=True)
    ]
    sizes, told = Counter(groups), {}
    for split, count in wanted.items():
        chosen = choose(sizes, count, part.seed)
        mask = [group in chosen for group in groups]
        splits.keep(split, mask, of="train")
        splits.keep("train", [not held for held in mask])
        groups = [group for group in groups if group not in chosen]
        sizes = Counter(groups)
        told[split] = {"asked": count, "got": splits.tables[split].num_rows}
        if told[split]["got"] != count:
            got = told[split]["got"]
            say(f"{split} rows: {got:,} where {count:,} were asked, as documents and repeated texts are not cut")
    return told


def hold_out_last(splits: Splits, part: Split, wanted: Mapping[str, int]) -> dict[str, Any]:
    """The rows with the largest numbers in a column are held out, test behind validation; with `within`, of each of its values.

    Raises:
        HermitcrabError: the rows have no such column, or one of them has no number there.
    """
    table, told = splits.tables["train"], {}
    for key in ("by", "within"):
        name = getattr(part, key)
        if name is not None and name not in table.column_names:
            raise HermitcrabError(
                f"data.split.{key}: rows of this format have no column `{name}`{did_you_mean(name, table.column_names)}"
            )
    numbers = table.column(part.by or "").to_pylist()
    ids = table.column("row_id").to_pylist()
    if wrong := next((row for row, n in zip(ids, numbers, strict=True) if not isinstance(n, int | float)), None):
        raise HermitcrabError(f"data.split.by: row {wrong} has no number in `{part.by}`; expected one in every row")
    values = table.column(part.within).to_pylist() if part.within else [None] * len(ids)
    left: dict[Any, list[int]] = {}
    for row in sorted(range(len(ids)), key=lambda row: (numbers[row], ids[row])):
        left.setdefault(values[row], []).append(row)
    chosen: dict[str, set[int]] = {}
    for split, count in wanted.items():  # test first: the very last
        chosen[split] = set()
        for places in left.values():
            share = round(count * len(places) / table.num_rows) if part.within else count
            last = places[max(0, len(places) - share) :]
            chosen[split].update(last)
            del places[len(places) - len(last) :]
    for split, rows in chosen.items():
        splits.keep(split, [row in rows for row in range(len(ids))], of="train")
        told[split] = {"asked": wanted[split], "got": len(rows)}
        if len(rows) != wanted[split]:
            say(
                f"{split} rows: {len(rows):,} where {wanted[split]:,} were asked, the last by `{part.by}` within `{part.within}`"
            )
    held = set().union(*chosen.values())
    splits.keep("train", [row not in held for row in range(len(ids))])
    return told


def take(splits: Splits, count: int, seed: int) -> None:
    """Draw `count` training rows; the others are dropped and counted.

    Raises:
        HermitcrabError: when there are not so many.
    """
    table = splits.tables["train"]
    if count > table.num_rows:
        raise HermitcrabError(
            f"data.take asks for {count:,} training rows, but there are {table.num_rows:,} after cleaning and splitting"
        )
    ids, texts = table.column("row_id").to_pylist(), list(splits.questions("train"))
    order = sorted(range(len(ids)), key=lambda i: (draw(seed, "take", texts[i]), ids[i]))
    drawn = set(order[:count])
    splits.drop("train", [None if i in drawn else f"not drawn: take is {count}" for i in range(len(ids))])


def prove_apart(splits: Splits, keys: Callable[[Splits, str], list[bytes]] = fold_keys) -> None:
    """That no held-out text stands in training data, and no test text in validation data; by `keys` of their texts.

    Raises:
        HermitcrabError: how many do, the first of them, and what to do.
    """
    held: dict[bytes, str] = {}
    for split in ("test", "validation", "train"):
        found = keys(splits, split)
        both = [(i, held[key]) for i, key in enumerate(found) if key in held]
        if both:
            row = splits.tables[split].column("row_id")[both[0][0]].as_py()
            raise HermitcrabError(
                f"{len(both):,} {split} rows stand in {both[0][1]} data too, the first is row {row}; "
                "add `decontaminate` to data.clean, which drops and counts them"
            )
        held.update(dict.fromkeys(found, split))
