"""Rows of tables, interactions and labelled texts: gathered from columns, numbers as numbers, what is missing as null."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cleaned import clean

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.readers import BadRow
from hermitcrab.data.reading import check_sources, read_rows
from hermitcrab.data.tables import FORMATS, answer, column_kind, question, register_format, schema
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Source


def collected(folder: Path, text: str, **source: object) -> list[dict[str, object]]:
    (folder / "rows.csv").write_text(text, encoding="utf-8")
    made = Source.model_validate({"path": "rows.csv", "license": "MIT", **source})
    check_sources([made])
    return list(read_rows(made, folder / "rows.csv", "d", "uri", Ledger("rows")))


def test_the_columns_of_a_table_that_mean_nothing_else_are_its_record(tmp_path):
    text = "id,größe,home,empty,when,Status\n7,1.50,own,,1e3,good\n007,NaN, 租 ,NA,-2,bad\n"
    first, second = collected(tmp_path, text, format="tabular", columns={"target": "Status"}, document="id")
    assert json.loads(first["record"]) == {"größe": 1.5, "home": "own", "empty": None, "when": 1000.0}
    assert json.loads(second["record"]) == {"größe": None, "home": "租", "empty": None, "when": -2}
    assert (first["target"], first["document"]) == ("good", "7")
    (only, _) = collected(tmp_path, text, format="tabular", columns={"target": "Status"}, features=["home"])
    assert json.loads(only["record"]) == {"home": "own"}


def test_an_interaction_has_numbers_and_features(tmp_path):
    text = "userId,movieId,rating,timestamp,genres\n1,31,2.5,1260759144,Drama|Krimi\n1,32,,5,\n"
    columns = {"user": "userId", "item": "movieId", "time": "timestamp"}
    first, second = collected(tmp_path, text, format="interaction", columns=columns, features=["genres"])
    assert (first["user"], first["item"], first["rating"], first["time"]) == ("1", "31", 2.5, 1260759144.0)
    assert json.loads(first["features"]) == {"genres": "Drama|Krimi"}
    assert second["rating"] is None
    with pytest.raises(BadRow, match="column `rating`: received 'great', expected a number"):
        collected(tmp_path, "user,item,rating,time\n1,2,great,3\n", format="interaction")


def test_what_cannot_be_gathered_is_refused(tmp_path):
    with pytest.raises(UsageError, match="features: no column `hom` \\(did you mean `home`\\?\\)"):
        collected(tmp_path, "home,target\na,b\n", format="tabular", features=["hom"])
    with pytest.raises(UsageError, match="`features` are for rows that are gathered"):
        collected(tmp_path, "text,label\na,b\n", format="text-label", features=["text"])
    with pytest.raises(BadRow, match="column `target`: received '', expected text"):
        collected(tmp_path, "x,target\n1,\n", format="tabular")
    with pytest.raises(BadRow, match="expected a JSON list or object"):
        collected(tmp_path, "name,time,past,future\na,1,[1],nope\n", format="series")


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_every_format_has_a_schema_a_question_and_an_answer(tmp_path, format):
    sample = {"text": "Größe", "number": 2.0, "json": '{"a": "b"}', "bytes": b"raw"}
    row = {column: sample[column_kind(column)] for column in FORMATS[format]} | {
        "row_id": "1",
        "source": "s",
        "document": None,
    }
    if format == "messages":
        row["messages"] = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert isinstance(question(format, row), str)
    answer(format, row)
    cells = tuple(row[column] for column in FORMATS[format])
    made = clean(
        tmp_path, [cells, cells], format=format, clean=["normalize", "exact-dedup", "decontaminate"], form="NFKC"
    )
    assert made.tables["train"].num_rows == 1
    assert made.tables["train"].schema.remove_metadata() == schema(format)


def test_texts_inside_json_are_normalized_and_stay_json(tmp_path):
    made = clean(
        tmp_path, [('{"a": "ｘ＂y", "b": "", "n": 1.5}', "t")], format="tabular", clean=["normalize"], form="NFKC"
    )
    assert json.loads(made.tables["train"]["record"][0].as_py()) == {"a": 'x"y', "b": "", "n": 1.5}
    assert made.ledger[0]["changed"] == {"normalized": 1}


def test_a_format_of_a_task_from_outside_is_known_once_and_cannot_change_another(monkeypatch):
    monkeypatch.setitem(FORMATS, "pair", ("left", "right"))
    register_format("pair", {"left": "text", "right": "text"})
    with pytest.raises(HermitcrabError, match="`pair` is known with other columns"):
        register_format("pair", {"left": "text"})
    with pytest.raises(HermitcrabError, match="a column `text` holds text elsewhere"):
        register_format("other", {"text": "bytes"})
