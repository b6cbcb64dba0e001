"""The columns of a table as a model is given them, fitted on training rows alone.

A column whose training cells are all numbers (or missing) is one of numbers: brought to a normal distribution by its quantiles, so that
neither its unit nor a long tail matters (as in Gorishniy et al. 2021, arXiv:2106.11959). Every other is one of categories: a value that no
training row has, and a missing one, are the unknown value. `fitted["columns"]` has `{name, knots, at}` or `{name, values}`.

Shapes: N rows, F columns of numbers, G columns of categories.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

KNOTS = 65  # quantiles of a column of numbers
MANY = 64  # values of a column of categories, from which on they must come again to be of use
EDGE = 1e-3  # share beyond the first and the last quantile


@dataclass(frozen=True)
class Cells:
    """`number` float32 [N, F] on a normal scale, 0 where `missing` [N, F] is 1; `category` int64 [N, G], 0 where it is unknown."""

    number: np.ndarray
    missing: np.ndarray
    category: np.ndarray
    unseen: int


def records(rows: pa.Table) -> list[dict[str, Any]]:
    return [json.loads(text) for text in rows["record"].to_pylist()]


def fit(rows: pa.Table) -> list[dict[str, Any]]:
    """The columns, in alphabetical order.

    Raises:
        HermitcrabError: no column, or one of texts that is another in nearly every row and tells nothing.
    """
    found = records(rows)
    names = sorted({name for record in found for name in record})
    if not names:
        raise HermitcrabError("the training rows have no columns but the target; expected at least one to learn from")
    return [_fit_column(name, [record.get(name) for record in found]) for name in names]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fit_column(name: str, cells: list[Any]) -> dict[str, Any]:
    known = [cell for cell in cells if cell is not None]
    if known and all(map(is_number, known)):
        return {"name": name, **_quantiles(np.array(known, dtype=np.float64))}
    values = sorted({_text(cell) for cell in known})
    if len(values) > max(MANY, len(known) // 2):
        raise HermitcrabError(
            f"column `{name}` has {len(values):,} values in {len(known):,} rows, so it names rows and tells nothing of them; "
            "leave it out with `features`"
        )
    return {"name": name, "values": values}


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else json.dumps(cell)


def _quantiles(number_N: np.ndarray) -> dict[str, Any]:
    """Knots, and where on a standard normal each of them lies; knots that are equal lie in their middle."""
    from scipy.stats import norm

    share = np.linspace(0, 1, KNOTS)
    knots = np.quantile(number_N, share)
    unique = np.unique(knots)
    middle = np.array([share[knots == knot].mean() for knot in unique])
    at = norm.ppf(EDGE + (1 - 2 * EDGE) * middle) if len(unique) > 1 else np.zeros(1)
    return {"knots": unique.tolist(), "at": at.round(6).tolist()}


def check(columns: Any, where: str) -> None:
    """Refuse (HermitcrabError) what `fit` could not have made: a record may be a stranger's."""

    def sound(column: Any) -> bool:
        if not isinstance(column, dict) or not isinstance(column.get("name"), str):
            return False
        if column.keys() == {"name", "values"}:
            values = column["values"]
            return (
                isinstance(values, list) and all(isinstance(v, str) for v in values) and values == sorted(set(values))
            )
        if column.keys() != {"name", "knots", "at"}:
            return False
        knots, at = column["knots"], column["at"]
        lists = isinstance(knots, list) and isinstance(at, list) and 0 < len(knots) == len(at) <= KNOTS
        return (
            lists
            and all(map(is_number, [*knots, *at]))
            and knots == sorted(set(knots))
            and bool(np.isfinite(knots + at).all())
        )

    if not isinstance(columns, list) or not columns or not all(map(sound, columns)):
        raise HermitcrabError(
            f"{where}: fitted: columns are not as they are fitted to a table. Received: {str(columns)[:80]}"
        )


def numbers(columns: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [column for column in columns if "knots" in column]


def categories(columns: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [column for column in columns if "values" in column]


def sizes(columns: Iterable[dict[str, Any]]) -> list[int]:
    """How many values each column of categories has, the unknown one included."""
    return [1 + len(column["values"]) for column in categories(columns)]


def encode(rows: pa.Table, columns: list[dict[str, Any]]) -> Cells:
    """The cells of rows.

    Raises:
        HermitcrabError: a text in a column of numbers, with its row.
    """
    raw_NF, code_NG, unseen = _cells(rows, columns)
    missing_NF = np.isnan(raw_NF)
    number_NF = np.zeros_like(raw_NF)
    for i, column in enumerate(numbers(columns)):
        number_NF[:, i] = np.interp(raw_NF[:, i], column["knots"], column["at"])
    number_NF[missing_NF] = 0
    return Cells(number_NF.astype(np.float32), missing_NF.astype(np.float32), code_NG, unseen)


def _cells(rows: pa.Table, columns: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers as they are, float64 [N, F] with NaN where one is missing; codes of categories, int64 [N, G]; how many were not known."""
    found = records(rows)
    raw_NF = np.full((len(found), len(numbers(columns))), np.nan)
    for i, column in enumerate(numbers(columns)):
        for n, record in enumerate(found):
            cell = record.get(column["name"])
            if cell is not None and not is_number(cell):
                raise HermitcrabError(
                    f"row {rows['row_id'][n].as_py()}: column `{column['name']}`: expected a number, as in all training rows. "
                    f"Received: {str(cell)[:40]!r}"
                )
            raw_NF[n, i] = np.nan if cell is None else cell
    code_NG, unseen = np.zeros((len(found), len(categories(columns))), np.int64), 0
    for i, column in enumerate(categories(columns)):
        codes = {value: code for code, value in enumerate(column["values"], 1)}
        for n, record in enumerate(found):
            cell = record.get(column["name"])
            code_NG[n, i] = 0 if cell is None else codes.get(_text(cell), 0)
            unseen += cell is not None and code_NG[n, i] == 0
    return raw_NF, code_NG, unseen


def plain(rows: pa.Table, columns: list[dict[str, Any]]) -> tuple[np.ndarray, list[int]]:
    """For what takes tables as they are: numbers, then codes of categories (float64 [N, F + G], NaN where unknown), and which columns
    are codes."""
    raw_NF, code_NG, _ = _cells(rows, columns)
    codes = np.where(code_NG == 0, np.nan, code_NG.astype(np.float64))
    return np.concatenate([raw_NF, codes], axis=1), list(range(raw_NF.shape[1], raw_NF.shape[1] + code_NG.shape[1]))


def one_hot(cells: Cells, columns: list[dict[str, Any]]) -> np.ndarray:
    """Numbers, marks of the missing, and categories one-hot: float32 [N, D]."""
    parts = [cells.number, cells.missing]
    parts += [np.eye(size, dtype=np.float32)[cells.category[:, i]] for i, size in enumerate(sizes(columns))]
    return np.concatenate(parts, axis=1)


def changed(record: dict[str, Any], columns: list[dict[str, Any]]) -> list[str]:
    """What was done to a record that is not as those that were learnt from."""
    known = {column["name"] for column in columns}
    told = [f"{name} is missing" for name in sorted(known) if record.get(name) is None]
    return told + [f"{name} is not looked at{did_you_mean(name, known)}" for name in sorted(record.keys() - known)]


def probes(columns: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Records that nobody has: places between the ends of each column of numbers, values of each of categories in turn."""
    found = []
    for n in range(count):
        record: dict[str, Any] = {}
        for i, column in enumerate(columns):
            if "knots" in column:
                low, high = column["knots"][0], column["knots"][-1]
                record[column["name"]] = low + (high - low) * ((n * 7 + i * 5) % count) / count
            else:
                values = column["values"] or [None]
                record[column["name"]] = values[(n + i) % len(values)]
        found.append(record)
    return found


def build(configuration: dict[str, Any], columns: list[dict[str, Any]], outputs: int) -> Any:
    """The net that a configuration names."""
    from hermitcrab.models.architectures.ft_transformer import FTTransformer
    from hermitcrab.models.architectures.tabular_mlp import TabularMLP

    nets = {"mlp": TabularMLP, "ft-transformer": FTTransformer}
    kind = configuration["model_type"]
    if kind not in nets:
        raise HermitcrabError(f"base.architecture: no model of tables is an {kind!r}{did_you_mean(kind, nets)}")
    return nets[kind](configuration, len(numbers(columns)), sizes(columns), outputs)
