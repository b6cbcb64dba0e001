import csv
import datetime
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.data import readers
from hermitcrab.data.readers import BadRow, Record, open_table
from hermitcrab.errors import HermitcrabError

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)


def read(folder, data: bytes, kind: str, name: str = "data", only=("text", "label", "a", "b")):
    path = folder / name
    path.write_bytes(data)
    with open_table(path, name, kind) as table:
        return list(table.read(only))


def cells(records):
    return [r.cells for r in records]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readers")


def parquet(columns) -> bytes:
    out = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), out)
    return out.getvalue()


@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1), end=st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=60, deadline=None)
def test_csv_as_written_by_others_comes_back_cell_by_cell(folder, rows, end):
    out = io.StringIO()
    csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    assert cells(read(folder, out.getvalue().encode(), "csv")) == [{"a": a, "b": b} for a, b in rows]


def test_quoted_newlines_keep_positions_and_lines_right(folder):
    one, two = read(folder, b'text,label\n"two\nlines",1\nplain,0\n', "csv")
    assert (one.position, one.cells["text"], one.where) == (0, "two\nlines", "data: row 1 (line 2)")
    assert (two.position, two.where) == (1, "data: row 2 (line 4)")


def test_byte_order_mark_blank_lines_and_old_line_ends_are_read_over(folder):
    assert cells(read(folder, b"\xef\xbb\xbftext,label\r\rx,1\r", "csv")) == [{"text": "x", "label": "1"}]


def test_tabs_separate_and_quotes_quote_in_tsv(folder):
    assert cells(read(folder, b'text\tlabel\n"a\tb, ""c"""\t1\n', "tsv")) == [{"text": 'a\tb, "c"', "label": "1"}]


def test_cell_beyond_the_csv_modules_own_limit_is_read(folder):
    long = "x" * 1_000_000
    assert cells(read(folder, f"text,label\n{long},1\n".encode(), "csv")) == [{"text": long, "label": "1"}]


@pytest.mark.parametrize(
    ("row", "kind", "told", "reason"),
    [
        (b"one", "csv", "received 1 cells, the last 'one'; expected 2: text, label", "not as many cells as the header"),
        (b"a,b,c", "csv", "received 3 cells, the last 'c'; expected 2: text, label", "not as many cells as the header"),
        (
            b"caf\xe9,1",
            "csv",
            r"column `text`: received 'caf\udce9' with bytes that are not UTF-8",
            "column `text` holds bytes",
        ),
        (b"a\x00b,1", "csv", "column `text`: received 'a\\x00b' with a NUL byte", "column `text` holds a NUL byte"),
        (b'"a"b,1', "csv", "not CSV", "not CSV"),
        (b'{"text": "x"', "jsonl", "expected one JSON object a line", "not JSON"),
        (b'{"text": NaN}', "jsonl", "NaN is not JSON", "not JSON"),
        (b'{"text": "x", "text": "y"}', "jsonl", "the key 'text' is given twice", "not JSON"),
        (b"[1, 2]", "jsonl", "received a list of 2, expected a JSON object", "not a JSON object"),
        (b'{"text": "\\ud800"}', "jsonl", "column `text`", "column `text` holds bytes"),
        (b"[" * 100_000, "jsonl", "expected one JSON object a line", "not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "jsonl", "expected one JSON object a line", "not JSON"),
        (b"caf\xe9", "lines", "column `text`", "column `text` holds bytes"),
    ],
)
def test_bad_row_names_file_row_and_value_and_the_next_row_is_read(folder, row, kind, told, reason):
    header, good = (b"text,label\n", b"good,1\n") if kind == "csv" else (b"", b'{"text": "good"}\n')
    first, bad, last = read(folder, header + good + row + b"\n" + good, kind)
    assert isinstance(bad, BadRow)
    assert str(bad).startswith("data: row 2 (line ")
    assert told in str(bad)
    assert bad.reason.startswith(f"bad row: {reason}")
    assert (first.position, last.position) == (0, 2)
    str(bad).encode()  # fit for a terminal, whatever the bytes were


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "text", "lines"])
@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n\n", b"\r\n"])
def test_empty_file_is_an_error(folder, kind, data):
    with pytest.raises(HermitcrabError, match="data: is empty"):
        read(folder, data, kind)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"text,label,text\nx,1,y\n", "names the column `text` twice"),
        ("text,label\nx,1\n".encode("utf-16"), "the header has bytes that are not UTF-8.*UTF-16"),
        (b'text,label\nx,1\n"never closed,1\ny,0\n', r"row 2 \(line 3\): a quote that opens here is never closed"),
        (b'"text,label\n', "the header is not CSV"),
    ],
)
def test_what_spoils_the_whole_csv_raises(folder, data, told):
    with pytest.raises(HermitcrabError, match=told):
        read(folder, data, "csv")


@pytest.mark.parametrize(("kind", "start"), [("csv", b'text\n"'), ("lines", b""), ("jsonl", b'"'), ("text", b"a\n")])
def test_row_without_an_end_does_not_fill_the_memory(folder, kind, start, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST", 10_000)
    with pytest.raises(HermitcrabError, match="has over 10,000 characters"):
        read(folder, start + b"line after line\n" * 5 + b"x" * 20_000, kind)


def test_many_rows_of_any_length_below_the_limit_are_read(folder, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST", 100)
    assert len(read(folder, b"text\n" + b"x" * 90 + b"\n" + b"y\n" * 500, "csv")) == 501
    assert len(read(folder, b"x\n\n" * 500, "text")) == 500


def test_jsonl_values_keep_their_kind(folder):
    line = {"text": "é\u2028x", "a": 5, "b": None, "messages": [{"role": "user", "content": "hi"}]}
    data = json.dumps(line, ensure_ascii=False).encode() + b"\r\n\n"
    assert cells(read(folder, data, "jsonl")) == [line]


def test_text_gives_paragraphs_and_lines_gives_lines(folder):
    data = b"\none\r\ntwo\r\n \nthree\n\n\n"
    assert cells(read(folder, data, "text")) == [{"text": "one\r\ntwo"}, {"text": "three"}]
    assert cells(read(folder, data, "lines")) == [{"text": "one"}, {"text": "two"}, {"text": "three"}]
    assert [r.where for r in read(folder, data, "text")] == ["data: row 1 (line 2)", "data: row 2 (line 5)"]


def test_parquet_scalars_become_text_and_lists_stay(folder):
    table = pa.table(
        {
            "text": ["x", None], "a": pa.array([1, None], pa.int64()), "b": [True, False],
            "when": [datetime.datetime(2024, 1, 2, 3, 4, 5)] * 2, "kind": pa.array(["u", "v"]).dictionary_encode(),
            "messages": [[{"role": "user", "content": "hi"}], None], "unread": [1, 2],
        }
    )  # fmt: skip
    first, second = read(folder, parquet(table), "parquet", only=("text", "a", "b", "when", "kind", "messages"))
    assert first.cells == {
        "text": "x", "a": "1", "b": "true", "when": "2024-01-02 03:04:05.000000", "kind": "u",
        "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip
    assert (second.position, second.cells["text"], second.cells["a"], second.cells["messages"]) == (1, None, None, None)


def test_parquet_cell_that_is_not_utf8_is_a_bad_row(folder):
    raw = pa.array([b"good", b"caf\xe9"], pa.binary())
    good, bad = read(folder, parquet({"text": raw}), "parquet")
    assert good.cells == {"text": "good"}
    assert "row 2" in str(bad)
    assert "not UTF-8" in str(bad)


def test_parquet_with_a_column_twice_or_of_another_type_is_refused(folder):
    twice = pa.Table.from_arrays([pa.array(["x"])] * 2, ["text", "text"])
    with pytest.raises(HermitcrabError, match="has the column 'text' twice"):
        read(folder, parquet(twice), "parquet")
    with pytest.raises(HermitcrabError, match="cannot be read as Parquet"):
        read(folder, b"text,label\nx,1\n", "parquet")


PIECES = st.sampled_from(
    [b'"', b"\n", b"\r", b",", b"\t", b"{", b"}", b"[", b'"text":', b"\xff", b"\x00", b"\xef\xbb\xbf", b"1e999"]
)
ANY = st.one_of(st.binary(max_size=200), st.lists(PIECES | st.binary(max_size=3), max_size=40).map(b"".join))


@given(data=ANY, kind=st.sampled_from(["csv", "tsv", "jsonl", "text", "lines", "parquet"]), packed=st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_rows_or_an_error_of_ours(folder, data, kind, packed):
    try:
        found = read(folder, gzip.compress(data) if packed else data, kind)
    except HermitcrabError as error:
        str(error).encode()
        return
    positions = [r.position for r in found if isinstance(r, Record)]
    assert positions == sorted(set(positions))
    assert all(isinstance(r, Record | BadRow) for r in found)


WHOLE = parquet({"text": ["some text", "more text"] * 20, "label": [1, 0] * 20, "a": [[1], None] * 20})


@given(place=st.integers(0, len(WHOLE) - 1), bits=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_spoilt_parquet_gives_rows_or_an_error_of_ours(folder, place, bits):
    spoilt = bytearray(WHOLE)
    spoilt[place] ^= bits
    try:
        read(folder, bytes(spoilt), "parquet")
    except HermitcrabError as error:
        assert "cannot be read as Parquet" in str(error) or "twice" in str(error) or "unpacks" in str(error)  # noqa: PT017
