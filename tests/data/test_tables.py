import json
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.data.tables import (
    TableWriter,
    answer,
    question,
    read_table,
    row_id,
    rows_of,
    schema,
    write_rows,
    write_table,
)

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def row(i, **columns):
    return {"row_id": row_id("sha256:x", i), "source": "s", "document": None, **columns}


def test_same_rows_give_the_same_bytes_and_come_back_sorted_by_id(tmp_path):
    rows = [row(i, prompt=f"question {i} é", completion="yes") for i in range(20_000)]
    for name in ("a", "b"):
        with TableWriter(tmp_path / name, schema("prompt-completion")) as out:
            for each in rows:
                out.add(each)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    table = read_table(tmp_path / "a", "prompt-completion")
    assert list(rows_of(table)) == sorted(rows, key=lambda r: r["row_id"])
    write_table(tmp_path / "c", table)
    write_table(tmp_path / "d", read_table(tmp_path / "c", "prompt-completion"))
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


def test_table_with_no_rows_still_names_its_columns(tmp_path):
    write_table(tmp_path / "empty", read_table(tmp_path / "not there", "text"))
    assert pq.read_table(tmp_path / "empty").column_names == ["row_id", "source", "document", "text"]


@pytest.mark.parametrize(
    ("format", "columns", "asked", "said"),
    [
        ("text", {"text": "t"}, "t", ""),
        ("prompt-completion", {"prompt": "p", "completion": "c"}, "p", "c"),
        ("messages", {"messages": json.dumps(TURNS)}, "user\nq", "a"),
    ],
)
def test_question_and_answer_of_each_format(format, columns, asked, said):
    assert (question(format, columns), answer(format, columns)) == (asked, said)


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(0, 20_000), max_size=5), long=st.integers(0, 19_999))
def test_many_rows_at_once_give_the_bytes_of_one_after_the_other(tmp_path_factory, cuts, long):
    folder, kind = tmp_path_factory.mktemp("tables"), schema("text")
    rows = [row(i, text="é" * (20_000_000 if i == long else i % 7)) for i in range(20_000)]
    write_rows(folder / "one", rows, kind)
    table, edges = kind.empty_table().from_pylist(rows, kind), sorted({0, *cuts, 20_000})
    with TableWriter(folder / "many", kind) as out:
        for first, last in pairwise(edges):
            if first % 2:
                out.write(table.slice(first, last - first))
            else:
                for each in rows[first:last]:
                    out.add(each)
    assert (folder / "one").read_bytes() == (folder / "many").read_bytes()
