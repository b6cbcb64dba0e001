import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.reading import check_sources, read_rows
from hermitcrab.data.rows import parse_template
from hermitcrab.data.tables import row_id
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Source

CSV = "text,label,site\nfine,1,a\nawful,0,b\ngood,1,a\n"
SENTIMENT = {"columns": {"prompt": "Review: {text}\nSentiment:", "completion": "label"},
             "values": {"label": {"0": "negative", "1": "positive"}}}  # fmt: skip


def rows(folder, text, name="reviews.csv", on_error="stop", **source):
    (folder / name).write_text(text, encoding="utf-8")
    ledger = Ledger()
    part = Source(path=name, license="CC0-1.0", **source)
    found = list(read_rows(part, folder / name, "sha256:" + "0" * 64, "uri:reviews", ledger, on_error))
    ledger.balance()
    return found, ledger


def messages(folder, *turns, **more):
    line = json.dumps({"messages": [{"role": role, "content": content} for role, content in turns], **more})
    return rows(folder, line + "\n", "chat.jsonl", format="messages")[0][0]["messages"]


def test_where_selects_values_rename_and_templates_fill(tmp_path):
    found, ledger = rows(tmp_path, CSV, where={"site": "a"}, document="site", **SENTIMENT)
    assert [(r["prompt"], r["completion"], r["document"]) for r in found] == [
        ("Review: fine\nSentiment:", "positive", "a"), ("Review: good\nSentiment:", "positive", "a"),
    ]  # fmt: skip
    assert (ledger.taken, ledger.kept, dict(ledger.dropped)) == (3, 2, {"not selected: site is not a": 1})


def test_row_id_is_of_source_digest_and_position_alone(tmp_path):
    whole, _ = rows(tmp_path, CSV, **SENTIMENT)
    some, _ = rows(tmp_path, CSV, where={"site": "a"}, format="text")
    assert [r["row_id"] for r in whole] == [row_id("sha256:" + "0" * 64, i) for i in range(3)]
    assert [r["row_id"] for r in some] == [whole[0]["row_id"], whole[2]["row_id"]]
    assert len({row_id("sha256:" + "1" * 64, 0), whole[0]["row_id"]}) == 2
    assert all(len(r["row_id"]) == 16 and r["source"] == "uri:reviews" and r["document"] is None for r in whole)


def test_columns_of_the_wanted_name_are_the_default(tmp_path):
    found, _ = rows(tmp_path, "prompt,completion\nq,a\n")
    assert (found[0]["prompt"], found[0]["completion"]) == ("q", "a")


def test_column_that_is_not_there_names_the_nearest_and_all(tmp_path):
    for source in ({"columns": {"text": "txet"}}, {"where": {"txet": "x"}}, {"values": {"txet": {"a": "b"}}},
                   {"document": "txet"}, {"columns": {"text": "<{txet}>"}}):  # fmt: skip
        with pytest.raises(UsageError, match=r"no column `txet` \(did you mean `text`\?\); .* 'text', 'label', 'site'"):
            rows(tmp_path, CSV, format="text", **source)


def test_file_without_a_header_is_seen_in_the_error(tmp_path):
    with pytest.raises(UsageError, match="no column `text`; the file's columns are: 'fine', '1'"):
        rows(tmp_path, "fine,1\nawful,0\n", format="text")


def test_column_that_a_json_row_lacks_is_a_bad_row(tmp_path):
    with pytest.raises(HermitcrabError, match=r"x.jsonl: row 2 \(line 2\): has no column `text`; did you mean `texts`"):
        rows(tmp_path, '{"text": "a"}\n{"texts": "b"}\n', "x.jsonl", format="text")


def test_value_that_is_not_listed_names_row_column_value_and_choices(tmp_path):
    with pytest.raises(HermitcrabError) as error:
        rows(tmp_path, CSV + "odd,2,a\n", **SENTIMENT)
    assert str(error.value) == "reviews.csv: row 4 (line 5): column `label`: received '2', expected one of: 0, 1"


def test_bad_rows_are_dropped_and_counted_by_reason_when_asked(tmp_path, capsys):
    text, columns = CSV + "odd,2,a\n  ,1,a\nodd,3,a\nshort\n", {"prompt": "text", "completion": "label"}
    found, ledger = rows(tmp_path, text, on_error="drop", columns=columns, values=SENTIMENT["values"])
    assert len(found) == 3
    assert ledger.dropped == {
        "bad row: column `label`: a value that `values` does not list": 2,
        "bad row: empty prompt": 1,
        "bad row: not as many cells as the header": 1,
    }
    assert "4 bad rows are dropped; the first: reviews.csv: row 4" in capsys.readouterr().err


def test_source_of_which_nothing_is_kept_says_why(tmp_path):
    with pytest.raises(HermitcrabError, match=r"no row of it is kept: not selected: site is not c \(3\)"):
        rows(tmp_path, CSV, where={"site": "c"}, format="text")
    with pytest.raises(HermitcrabError, match="no row of it is kept: it has none"):
        rows(tmp_path, "text\n", format="text")


def test_json_numbers_and_null_are_text_but_lists_are_not(tmp_path):
    found, _ = rows(tmp_path, '{"a": 5, "b": 1.5, "c": true, "d": null}\n', "x.jsonl", format="text",
                    columns={"text": "{a} {b} {c} <{d}>"})  # fmt: skip
    assert found[0]["text"] == "5 1.5 true <>"
    with pytest.raises(HermitcrabError, match="column `text`: received a list of 1, expected a text or a number"):
        rows(tmp_path, '{"text": ["x"]}\n', "x.jsonl", format="text")


def test_cell_with_braces_is_not_filled_again(tmp_path):
    found, _ = rows(
        tmp_path, "text,label\n{label} {{x}} {0.__class__},1\n", format="text", columns={"text": "{{{text}}}"}
    )
    assert found[0]["text"] == "{{label} {{x}} {0.__class__}}"


@pytest.mark.parametrize("text", ["{", "a}", "{}", "{a", "{a}}"])
def test_template_with_a_loose_brace_is_refused(text):
    with pytest.raises(UsageError, match=r"write {{ and }} for braces"):
        parse_template(text, "x")


@given(parts=st.lists(st.text(max_size=5) | st.text("abc .!", min_size=1, max_size=5).map(lambda c: (c,)), max_size=6))
def test_template_is_read_as_it_was_written(parts):
    text = "".join("{" + p[0] + "}" if isinstance(p, tuple) else p.replace("{", "{{").replace("}", "}}") for p in parts)
    cell = parse_template(text, "x")
    assert list(cell.columns) == [p[0] for p in parts if isinstance(p, tuple)]
    assert "".join(cell.parts[::2]) == "".join(p for p in parts if isinstance(p, str))


def test_messages_are_checked_and_kept_in_one_form(tmp_path):
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "hello ✓")]
    kept = messages(tmp_path, *turns, id=1)
    assert json.loads(kept) == [{"role": role, "content": content} for role, content in turns]
    quoted = json.dumps(json.loads(kept)).replace('"', '""')
    found, _ = rows(tmp_path, f'chat\n"{quoted}"\n', format="messages", columns={"messages": "chat"})
    assert found[0]["messages"] == kept


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([("user", "hi")], "received 'user', expected the last turn to be the assistant's"),
        ([("assistant", "hi")], "expected a turn of the user"),
        ([("user", "hi"), ("bot", "x")], "the role of message 2 to be one of: system, user, assistant, tool"),
        ([("user", " \n"), ("assistant", "x")], "the content of message 1 to be text that is not empty"),
        ([("user", 5), ("assistant", "x")], "received '5', expected the content of message 1"),
        ([("user", "a\x00"), ("assistant", "x")], "the content of message 1"),
        ([], "received a list of 0, expected a list of {role, content}"),
    ],
)
def test_messages_of_another_shape_are_bad_rows(tmp_path, turns, told):
    with pytest.raises(HermitcrabError) as error:
        messages(tmp_path, *turns)
    assert str(error.value).startswith("chat.jsonl: row 1 (line 1): column `messages`: ")
    assert told in str(error.value)


@pytest.mark.parametrize(
    "cell", ['"no json"', "5", "{}", '["x"]', '[{"role": "user"}]', '[{"role": ["user"], "content": "x"}]',
             '[{"role": "assistant", "content": "x", "tool_calls": []}]', '"' + "[" * 9000 + '"'],
)  # fmt: skip
def test_any_other_thing_in_place_of_messages_is_a_bad_row(tmp_path, cell):
    with pytest.raises(HermitcrabError, match=r"chat.jsonl: row 1 .*column `messages`"):
        rows(tmp_path, f'{{"messages": {cell}}}\n', "chat.jsonl", format="messages")


def test_messages_need_a_column_not_a_template(tmp_path):
    with pytest.raises(UsageError, match="expected a column that holds lists of messages"):
        rows(tmp_path, '{"a": 1}\n', "x.jsonl", format="messages", columns={"messages": "[{a}]"})


def test_sources_are_checked_before_any_file_is_opened():
    def source(path="x.csv", **more):
        return Source(path=path, license="MIT", **more)

    check_sources([source(), source("y.parquet")])
    with pytest.raises(UsageError, match=r"share one format. Received: prompt-completion, text"):
        check_sources([source(), source(format="text")])
    with pytest.raises(UsageError, match="has no column `propmt`; did you mean `prompt`"):
        check_sources([source(columns={"propmt": "x"})])
    with pytest.raises(UsageError, match="does not tell what it is"):
        check_sources([source("x.xlsx")])


@pytest.mark.data
def test_real_reviews_and_translations_are_read_whole(shared_data):
    for name, count, columns in (
        ("sentiment/reviews_en.csv.gz", 8530, {"prompt": "text", "completion": "label"}),
        ("sentiment/reviews_zh.csv.gz", 35123, {"prompt": "text", "completion": "label"}),
        ("translation-en-zh/libreoffice-help.tsv.gz", 24485, {"prompt": "en", "completion": "zh"}),
    ):
        ledger, part = Ledger(), Source(path=name, license="MIT", columns=columns)
        assert sum(1 for _ in read_rows(part, shared_data / name, "sha256:" + "0" * 64, name, ledger)) == count
        assert (ledger.taken, ledger.kept) == (count, count)


@pytest.mark.data
def test_real_novels_are_read_as_paragraphs(shared_data):
    part = Source(path="austen.txt.gz", license="CC0-1.0", format="text")
    found = list(read_rows(part, shared_data / "text-austen/austen.txt.gz", "sha256:0", "u", Ledger()))
    assert found[0]["text"] == "SENSE AND SENSIBILITY"
    assert len(found) > 10_000
    assert not any("\n\n" in r["text"] for r in found)
