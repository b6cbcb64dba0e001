"""A table of series into rows: what was known at each origin, what came after, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.readers import BadRow
from hermitcrab.data.reading import check_sources, read_rows
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Source

TABLE = "Date,A,B\n" + "".join(
    f"2020-01-{day:02},{day},{'' if day == 4 else -day}\n" for day in (3, 1, 2, 4, 5, 6, 7, 8)
)


def collected(folder: Path, text: str, ledger: Ledger | None = None, **source: object) -> list[dict[str, object]]:
    (folder / "rows.csv").write_text(text, encoding="utf-8")
    usual = {
        "path": "rows.csv",
        "license": "MIT",
        "format": "series",
        "columns": {"time": "Date"},
        "windows": {"context": 2, "horizon": 1},
    }
    made = Source.model_validate({**usual, **source})
    check_sources([made])
    return list(read_rows(made, folder / "rows.csv", "d", "uri", ledger or Ledger("rows")))


def test_rows_are_origins_in_time_whatever_the_order_of_the_file(tmp_path):
    ledger = Ledger("rows")
    rows = collected(tmp_path, TABLE, ledger)
    of_a = [(json.loads(r["past"]), json.loads(r["future"])) for r in rows if r["name"] == "A"]
    assert of_a == [([d, d + 1], [d + 2]) for d in range(1, 7)]
    assert rows[0]["time"] == 1578009600.0  # the third of January
    assert len([r for r in rows if r["name"] == "B"]) == 3
    assert ledger.as_json()["dropped"] == {"window with a missing value": 3}
    assert len({r["row_id"] for r in rows}) == len(rows)


def test_stride_and_features_are_as_they_are_asked(tmp_path):
    rows = collected(tmp_path, TABLE, features=["A"], windows={"context": 2, "horizon": 2, "stride": 4})
    assert [json.loads(r["future"]) for r in rows] == [[3, 4], [7, 8]]


@pytest.mark.parametrize(("text", "source", "error", "said"), [
    (TABLE + "2020-01-08,1,1\n", {}, BadRow, "stands twice"),
    (TABLE + "someday,1,1\n", {}, BadRow, "expected a date or a number"),
    (TABLE + "2020-01-09,much,1\n", {}, BadRow, "column `A`: received 'much', expected a number"),
    (TABLE, {"features": ["C"]}, UsageError, "no column `C`"),
    (TABLE, {"columns": {"time": "Dat"}}, UsageError, "no column `Dat`; did you mean `Date`"),
    (TABLE, {"windows": {"context": 8, "horizon": 1}}, HermitcrabError, "has 8 times; a window of 8 and 1 needs 9"),
    (TABLE, {"format": "tabular"}, UsageError, "`windows` are for rows of format `series`"),
])  # fmt: skip
def test_what_is_no_table_of_series_is_refused(tmp_path, text, source, error, said):
    with pytest.raises(error, match=said):
        collected(tmp_path, text, **source)
