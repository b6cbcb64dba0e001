"""A table of series into rows: at each origin, what was known of a series and what came after it (a rolling origin).

The rows of the file are times, in any order and each once; a cell that is empty leaves a gap, and a window with a gap is dropped and
counted. `time` is that of the first value that is forecast, in seconds since 1970, or the number that stands in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hermitcrab.data.files import kind_of
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.readers import MISSING, NUMBER, BadRow, Record, open_table, shown
from hermitcrab.data.tables import dump_json, row_id
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.progress import progress
from hermitcrab.recipe import Source


def read_windows(source: Source, path: Path, digest: str, uri: str, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Rows of format `series`, by origin.

    Raises:
        UsageError: a column that the file does not have.
        BadRow: a cell that is neither a number nor empty, a time that is none or stands twice.
        HermitcrabError: a file that is shorter than one window.
    """
    if source.windows is None:
        raise UsageError(f"{source.path}: rows of format `series` are made by `windows`")
    part, names, times, table = source.windows, *_table(source, path)
    size, position = part.context + part.horizon, 0
    if len(times) < size:
        raise HermitcrabError(
            f"{source.path}: has {len(times):,} times; a window of {part.context} and {part.horizon} needs {size:,}"
        )
    for start in range(0, len(times) - size + 1, part.stride or part.horizon):
        for name in names:
            values = table[name][start : start + size]
            ledger.take(1)
            position += 1
            if any(value is None for value in values):
                ledger.drop("window with a missing value")
                continue
            ledger.keep()
            yield {
                "row_id": row_id(digest, position - 1), "source": uri, "document": None, "name": name,
                "time": times[start + part.context], "past": dump_json(values[: part.context]),
                "future": dump_json(values[part.context :]),
            }  # fmt: skip


def _table(source: Source, path: Path) -> tuple[list[str], list[float], dict[str, list[float | None]]]:
    """Names of the series, the times in their order, and the values of each series."""
    key = source.columns.get("time", "time")
    found: dict[float, dict[str, float | None]] = {}
    with (
        open_table(path, source.path, kind_of(source.path, source.type)) as table,
        progress(f"reading {source.path}") as bar,
    ):
        columns = table.columns
        if columns is None:
            raise UsageError(f"{source.path}: series are read from a file whose columns have names in a header")
        names = source.features or [column for column in columns if column != key]
        for column in (key, *names):
            if column not in columns:
                raise UsageError(f"{source.path}: no column `{column}`{did_you_mean(column, columns)}")
        for record in table.read({key, *names}):
            bar.add()
            if isinstance(record, BadRow):
                raise record
            if not isinstance(record, Record):
                continue
            time = _time(record.cells[key], record.where, key)
            if time in found:
                raise BadRow(record.where, "a time twice", f"column `{key}`: {shown(record.cells[key])} stands twice")
            found[time] = {name: _value(record.cells[name], record.where, name) for name in names}
    times = sorted(found)
    return names, times, {name: [found[time][name] for time in times] for name in names}


def _time(cell: Any, where: str, column: str) -> float:
    text = str(cell).strip()
    if NUMBER.fullmatch(text):
        return float(text)
    try:
        made = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRow(
            where, "no time", f"column `{column}`: received {shown(cell)}, expected a date or a number"
        ) from error
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


def _value(cell: Any, where: str, column: str) -> float | None:
    text = "" if cell is None else str(cell).strip()
    if text in MISSING:
        return None
    if not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise BadRow(where, "no number", f"column `{column}`: received {shown(cell)}, expected a number")
    return float(text)
