"""One model's answers to the rows of a split: a predictions table, checked and sorted by row id.

Models are compared by row id and nothing else. Tables that answer different rows, a row twice, or the same row with
another reference are refused: an average over different questions compares nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError, did_you_mean
from hermitcrab.evaluate.statistics import Floats

if TYPE_CHECKING:
    import pyarrow as pa

OWN = ("row_ids", "reference", "prediction", "nll", "tokens", "bytes", "groups")


@dataclass(frozen=True)
class Answers:
    """Lists of N rows in the order of their ids. `nll` in nats; `groups` is None where every row stands for itself.

    References and predictions are texts, numbers or lists, as their task has them; `table` has every column, in the same order.
    """

    model: str
    row_ids: list[str]
    reference: list[Any]
    prediction: list[Any]
    nll: Floats | None = None
    tokens: Floats | None = None
    bytes: Floats | None = None
    groups: list[str | None] | None = None
    table: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    def has(self, name: str) -> bool:
        """Is there a column of that name, with something in it?"""
        if name in OWN:
            found = getattr(self, name)
            if found is None or name == "nll":
                return found is not None
            return any(value is not None for value in found) if isinstance(found, list) else bool(found.any())
        return (
            self.table is not None
            and name in self.table.column_names
            and self.table[name].null_count < max(1, len(self))
        )

    def column(self, name: str) -> Any:
        """A column by its name; of numbers, float64 N with NaN where there is none."""
        if name in OWN:
            return getattr(self, name)
        assert self.table is not None
        values = self.table[name].to_pylist()
        if all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values):
            return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        return values

    def numbers(self, name: str) -> Floats:
        """Of `reference`, `prediction` or another column, as float64 N.

        Raises:
            HermitcrabError: a value that is no finite number.
        """
        found = self.column(name)
        wrong = next((i for i, v in enumerate(found) if not _is_number(v)), None)
        if wrong is not None:
            raise HermitcrabError(
                f"`{self.model}`: row {self.row_ids[wrong]}: expected `{name}` to be a finite number. "
                f"Received: {str(found[wrong])[:60]}"
            )
        return np.array(found, dtype=np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def read(table: pa.Table, model: str) -> Answers:
    """A predictions table (columns of the contract: row_id, reference, prediction, …) as `Answers`.

    Raises:
        HermitcrabError: a column is missing, a row id stands twice, or a likelihood is missing or not finite.
    """
    for name in ("row_id", "reference", "prediction"):
        if name not in table.column_names:
            raise HermitcrabError(
                f"the answers of `{model}` have no column `{name}`{did_you_mean(name, table.column_names)}"
            )
    ids = table["row_id"].to_pylist()
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise HermitcrabError(
            f"`{model}` answered row {twice} twice; rows are paired by their id, so each must stand once"
        )
    order = sorted(range(len(ids)), key=lambda i: ids[i])

    def column(name: str) -> list[Any]:
        values = table[name].to_pylist()
        return [values[i] for i in order]

    def numbers(name: str) -> Floats | None:
        if name not in table.column_names or table[name].null_count == len(ids):
            return None
        values = np.array([np.nan if v is None else v for v in column(name)], dtype=np.float64)
        if not np.isfinite(values).all():
            row = ids[order[int(np.flatnonzero(~np.isfinite(values))[0])]]
            raise HermitcrabError(
                f"`{model}`: row {row}, column `{name}` is missing or not finite; expected a number on every row"
            )
        return values

    documents = column("document") if "document" in table.column_names else []
    return Answers(
        model=model,
        row_ids=[ids[i] for i in order],
        reference=column("reference"),
        prediction=column("prediction"),
        nll=numbers("nll"),
        tokens=numbers("tokens"),
        bytes=numbers("bytes"),
        groups=documents if any(d is not None for d in documents) else None,
        table=table.take(order) if order else table,
    )


def check_same_rows(all_answers: Sequence[Answers]) -> None:
    """Refuse tables that do not hold the same rows with the same references, bytes and documents."""
    first = all_answers[0]
    for other in all_answers[1:]:
        ours, theirs = set(first.row_ids), set(other.row_ids)
        if ours != theirs:
            alone = [(first.model, sorted(ours - theirs)), (other.model, sorted(theirs - ours))]
            told = " and ".join(f"{len(rows):,} only by `{who}` (such as {rows[0]})" for who, rows in alone if rows)
            raise HermitcrabError(
                f"`{first.model}` and `{other.model}` did not answer the same rows: {told}; nothing is compared"
            )
        for what in ("reference", "bytes", "groups"):
            a, b = getattr(first, what), getattr(other, what)
            if what == "groups" and (a is None) != (b is None):
                raise HermitcrabError(
                    f"only one of `{other.model}` and `{first.model}` says which rows belong together; nothing is compared"
                )
            if a is None or b is None:
                continue
            for row, x, y in zip(first.row_ids, a, b, strict=True):
                if x != y:
                    raise HermitcrabError(
                        f"row {row} has another {what.rstrip('s')} for `{other.model}` than for `{first.model}`; "
                        "models are compared on the same questions only"
                    )
