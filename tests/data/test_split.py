import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.data.clean import exact_keys, fold
from hermitcrab.data.split import choose, hold_out, prove_apart, take
from hermitcrab.data.tables import Splits, row_id, rows_of, schema
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import Split

TEXT = schema("text")


def splits(texts, documents=None, validation=(), test=()):
    tables, position = {}, 0
    for split, given_texts in (("train", texts), ("validation", validation), ("test", test)):
        rows = []
        for i, text in enumerate(given_texts):
            document = documents[i] if documents and split == "train" else None
            rows.append({"row_id": row_id("sha256:x", position), "source": "s", "document": document, "text": text})
            position += 1
        tables[split] = TEXT.empty_table().from_pylist(rows, TEXT).sort_by("row_id")
    return Splits("text", tables)


def column(found, split, name="text"):
    return [row[name] for row in rows_of(found.tables[split])]


def numbers(count):
    return [f"text number {i}" for i in range(count)]


@given(
    texts=st.lists(st.text("abAB .!", min_size=1, max_size=4), min_size=4, max_size=60),
    asked=st.tuples(st.integers(0, 20), st.integers(0, 20)), seed=st.integers(0, 9), named=st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_no_row_is_lost_no_text_is_on_both_sides_and_no_document_is_cut(texts, asked, seed, named):
    documents = [text[0] for text in texts] if named else None
    found = splits(texts, documents)
    try:
        told = hold_out(found, Split(validation=asked[0], test=asked[1], seed=seed), ["train"])
    except HermitcrabError:
        assert sum(asked) >= len(texts)
        return
    assert sorted(text for split in found.tables for text in column(found, split)) == sorted(texts)
    groups = [
        set(column(found, split, "document")) if named else {fold(text) for text in column(found, split)}
        for split in found.tables
    ]
    assert len(set.union(*groups)) == sum(len(group) for group in groups)
    if not named:
        prove_apart(found)
    assert {split: told[split]["got"] for split in told} == {
        s: found.tables[s].num_rows for s in ("test", "validation")
    }


@given(count=st.integers(3, 200), share=st.floats(0, 0.4), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_sizes_are_exact_where_texts_differ(count, share, seed):
    found = splits(numbers(count))
    hold_out(found, Split(validation=count // 3, test=share, seed=seed), ["train"])
    assert found.tables["validation"].num_rows == count // 3
    assert found.tables["test"].num_rows == round(share * count)


def test_split_and_draw_go_by_text_not_by_order_of_rows():
    def drawn(texts):
        found = splits(texts)
        hold_out(found, Split(validation=20, test=30, seed=3), ["train"])
        take(found, 40, 3)
        return {split: set(column(found, split)) for split in found.tables}

    texts = numbers(200)
    shuffled = random.Random(0).sample(texts, len(texts))
    assert drawn(texts) == drawn(shuffled)


def test_other_seed_gives_another_split():
    def test_rows(seed):
        found = splits(numbers(100))
        hold_out(found, Split(validation=0, test=50, seed=seed), ["train"])
        return set(column(found, "test"))

    assert test_rows(0) != test_rows(1)


def test_test_rows_stay_when_validation_grows():
    def test_rows(validation):
        found = splits(numbers(100))
        hold_out(found, Split(validation=validation, test=20), ["train"])
        return column(found, "test")

    assert test_rows(0) == test_rows(50)


def test_with_documents_the_nearest_size_is_told(capsys):
    found = splits(numbers(30), documents=[f"user {i // 10}" for i in range(30)])
    told = hold_out(found, Split(validation=0, test=13), ["train"])
    assert told["test"] == {"asked": 13, "got": 10}
    assert "test rows: 10 where 13 were asked" in capsys.readouterr().err


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), wanted=st.integers(0, 40), seed=st.integers(0, 5))
def test_whole_groups_come_as_near_as_the_smallest_one_left_allows(sizes, wanted, seed):
    groups = {str(i): size for i, size in enumerate(sizes)}
    chosen = choose(groups, wanted, seed)
    got, rest = sum(groups[g] for g in chosen), [groups[g] for g in groups if g not in chosen]
    assert got <= wanted or got - wanted < max(sizes)
    if got < wanted:
        assert all(got + size - wanted >= wanted - got for size in rest)


def test_splits_that_sources_give_are_left_alone():
    found = splits(numbers(10), validation=["v"], test=["t"])
    assert hold_out(found, Split(validation=5, test=5), ["train", "validation", "test"]) == {}
    assert (column(found, "validation"), column(found, "test"), len(column(found, "train"))) == (["v"], ["t"], 10)


@pytest.mark.parametrize("asked", [{"test": 10}, {"test": 6, "validation": 4}, {"test": 11}])
def test_asking_for_more_than_there_is_says_both_numbers(asked):
    with pytest.raises(
        HermitcrabError, match=r"asks for .*\d+ test.* rows, but the training source has 10 after cleaning"
    ):
        hold_out(splits(numbers(10)), Split(**{"validation": 0, **asked}), ["train"])
    with pytest.raises(HermitcrabError, match="take asks for 11 training rows, but there are 10"):
        take(splits(numbers(10)), 11, 0)


def test_rows_that_are_not_drawn_are_dropped_with_a_reason():
    found = splits(numbers(10))
    take(found, 4, 0)
    assert len(column(found, "train")) == 4
    assert [reason for _, _, reason in found.dropped] == ["not drawn: take is 4"] * 6


def test_leak_is_found_named_and_explained():
    found = splits(["a", "B!", "c"], validation=["b"], test=["d"])
    with pytest.raises(
        HermitcrabError, match=f"1 train rows stand in validation data too, the first is row {row_id('sha256:x', 1)}"
    ):
        prove_apart(found)
    prove_apart(found, exact_keys)
    with pytest.raises(HermitcrabError, match="1 validation rows stand in test data too"):
        prove_apart(splits(["a"], validation=["d"], test=["d"]), exact_keys)
