import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.data.clean import decontaminate, exact_dedup, fold, normalize, normalize_text
from hermitcrab.data.tables import FORMATS, Splits, row_id, rows_of, schema


def splits(format="prompt-completion", **given):
    """`train=[("question", "answer"), ...]`; texts and message lists likewise."""
    tables, position = {}, 0
    for split in ("train", "validation", "test"):
        rows = []
        for cells in given.get(split, []):
            cells = (cells,) if isinstance(cells, str) else cells
            rows.append({"row_id": row_id("sha256:x", position), "source": "s", "document": None,
                         **dict(zip(FORMATS[format], cells, strict=True))})  # fmt: skip
            position += 1
        table = schema(format).empty_table()
        tables[split] = table.from_pylist(rows, schema(format)).sort_by("row_id")
    return Splits(format, tables)


def left(found, split="train"):
    return [tuple(row[column] for column in FORMATS[found.format]) for row in rows_of(found.tables[split])]


def reasons(found):
    return sorted((split, reason) for _, split, reason in found.dropped)


def chat(*contents):
    roles = ["user", "assistant"] * len(contents)
    return json.dumps([{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)])


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(text=st.text())
def test_normalization_is_idempotent_and_leaves_no_control_character(form, text):
    once = normalize_text(text, form)
    assert normalize_text(once, form) == once
    assert unicodedata.is_normalized(form, once)
    assert not {c for c in once if unicodedata.category(c) == "Cc"} - {"\n", "\t"}


def test_normalization_of_each_kind():
    assert normalize_text("  cafe\u0301\x07\r\nline\rend\t\u00a0", "NFC") == "café\nline\nend"
    assert normalize_text("ﬁne ２", "NFC") == "ﬁne ２"
    assert normalize_text("ﬁne ２", "NFKC") == "fine 2"


def test_normalized_rows_are_counted_and_emptied_ones_dropped():
    found = splits(train=[(" a ", "x"), ("b", "x"), ("\x07", "x")], test=[("c\r\n", "y")])
    normalize(found, "NFC")
    assert sorted(left(found)) == [("a", "x"), ("b", "x")]
    assert left(found, "test") == [("c", "y")]
    assert len(found.changed & {row["row_id"] for split in found.tables for row in rows_of(found.tables[split])}) == 2
    assert reasons(found) == [("train", "empty after normalization")]


def test_messages_are_normalized_turn_by_turn():
    found = splits("messages", train=[chat(" hi\r\n", "hello ")])
    normalize(found, "NFC")
    assert json.loads(left(found)[0][0]) == json.loads(chat("hi", "hello"))


def test_of_equal_rows_the_smallest_id_stays_whatever_their_order():
    found = splits("text", train=["same", "other", "same", " same\r\n", "Same"])
    exact_dedup(found, "NFC")
    kept = [row["row_id"] for row in rows_of(found.tables["train"]) if row["text"].strip() == "same"]
    assert kept == [min(row_id("sha256:x", i) for i in (0, 2, 3))]
    assert len(left(found)) == 3
    assert reasons(found) == [("train", "exact duplicate")] * 2


def test_prompt_with_two_answers_keeps_one_and_says_so():
    found = splits(train=[("q", "yes"), ("q", "no"), ("p", "yes")])
    exact_dedup(found, "NFC")
    assert len(left(found)) == 2
    assert reasons(found) == [("train", "same prompt, other completion")]


def test_conversations_are_compared_by_the_turns_before_the_answer():
    found = splits("messages", train=[chat("hi", "hello"), chat("hi", "go away"), chat("hi", "hello", "more", "fine")])
    exact_dedup(found, "NFC")
    assert len(left(found)) == 2
    assert reasons(found) == [("train", "same prompt, other completion")]


def test_training_row_never_displaces_a_held_out_one():
    found = splits(
        train=[("q", "yes"), ("v", "x"), ("t", "x")], validation=[("v", "x"), ("q", "yes")], test=[("q", "yes")]
    )
    exact_dedup(found, "NFC")
    assert (left(found), left(found, "validation"), left(found, "test")) == ([("t", "x")], [("v", "x")], [("q", "yes")])


def test_case_punctuation_and_whitespace_do_not_hide_contamination():
    found = splits(
        "text", train=["“GREAT”  film—really!", "good film"], validation=["great film: really"], test=["Good... FILM?"]
    )
    decontaminate(found)
    assert left(found) == []
    assert reasons(found) == [("train", "stands in test data"), ("train", "stands in validation data")]


def test_validation_row_that_stands_in_test_data_goes():
    found = splits("text", train=["c"], validation=["a", "b"], test=["A!"])
    decontaminate(found)
    assert left(found, "validation") == [("b",)]
    assert left(found, "test") == [("A!",)]
    assert reasons(found) == [("validation", "stands in test data")]


def test_formulas_and_lone_punctuation_stay_apart():
    assert len({fold(text) for text in ("2*3", "2/3", "2+3", "23", "?", "!")}) == 6
    assert fold("Straße, 1!") == fold("STRASSE 1") == "strasse 1"


@given(st.text())
def test_folding_is_blind_to_what_it_folds(text):
    assert fold(text) == fold(f" {text}\n")
    assert fold(normalize_text(text, "NFC")) == fold(normalize_text(normalize_text(text, "NFC"), "NFKC"))
