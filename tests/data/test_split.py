import random

import numpy as np
import pytest
from cleaned import clean, dropped, texts_in
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.data import split
from hermitcrab.data.fold import fold
from hermitcrab.data.split import choose
from hermitcrab.data.tables import row_id
from hermitcrab.errors import HermitcrabError

KEYS = {"clean": ["decontaminate"]}


def numbers(count):
    return [f"text number {i}" for i in range(count)]


@given(
    texts=st.lists(st.text("abAB .!", min_size=1, max_size=4), min_size=4, max_size=60),
    asked=st.tuples(st.integers(0, 20), st.integers(0, 20)), seed=st.integers(0, 9), named=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_no_row_is_lost_no_text_is_on_both_sides_and_no_document_is_cut(tmp_path_factory, texts, asked, seed, named):
    documents = [text[0] for text in texts] if named else None
    clean_of = ["decontaminate"] if not named else []
    try:
        found = clean(
            tmp_path_factory.mktemp("s"),
            texts,
            documents=documents,
            clean=clean_of,
            validation=asked[0],
            test=asked[1],
            seed=seed,
        )
    except HermitcrabError:
        asked_for_all = sum(asked) >= len(texts)
        assert asked_for_all or named  # a text may be in two documents: then it is said, and nothing is written
        return
    assert sorted(text for name in found.tables for text in texts_in(found, name)) == sorted(texts)
    groups = [
        set(found.tables[name].column("document").to_pylist())
        if named
        else {fold(text) for text in texts_in(found, name)}
        for name in found.tables
    ]
    assert len(set.union(*groups)) == sum(len(group) for group in groups)


@pytest.mark.parametrize(("count", "share", "seed"), [(3, 0.0, 0), (50, 0.4, 1), (200, 0.33, 99)])
def test_sizes_are_exact_where_texts_differ(tmp_path, count, share, seed):
    found = clean(tmp_path, numbers(count), validation=count // 3, test=share, seed=seed)
    assert found.tables["validation"].num_rows == count // 3
    assert found.tables["test"].num_rows == round(share * count)


def test_split_and_draw_go_by_text_not_by_order_of_rows(tmp_path):
    texts = numbers(200)
    shuffled = random.Random(0).sample(texts, len(texts))

    def drawn(name, texts):
        found = clean(tmp_path / name, texts, validation=20, test=30, seed=3, take=40)
        return {split: set(texts_in(found, split)) for split in found.tables}

    assert drawn("a", texts) == drawn("b", shuffled)


def test_other_seed_gives_another_split(tmp_path):
    one, other = (texts_in(clean(tmp_path / str(seed), numbers(100), test=50, seed=seed), "test") for seed in (0, 1))
    assert set(one) != set(other)


def test_test_rows_stay_when_validation_grows(tmp_path):
    one, other = (texts_in(clean(tmp_path / str(n), numbers(100), test=20, validation=n), "test") for n in (0, 50))
    assert one == other


def test_with_documents_the_nearest_size_is_told(tmp_path, capsys):
    found = clean(tmp_path, numbers(30), documents=[f"user {i // 10}" for i in range(30)], test=13)
    assert found.told["test"] == {"asked": 13, "got": 10}
    assert "test rows: 10 where 13 were asked" in capsys.readouterr().err


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), wanted=st.integers(0, 40), seed=st.integers(0, 5))
def test_whole_groups_come_as_near_as_the_smallest_one_left_allows(sizes, wanted, seed):
    names = random.Random(seed).sample(range(100), len(sizes))
    groups = {bytes([name]): size for name, size in zip(names, sizes, strict=True)}
    chosen = choose(groups, wanted)
    got, rest = sum(groups[g] for g in chosen), [groups[g] for g in groups if g not in chosen]
    assert got <= wanted or got - wanted < max(sizes)
    if got < wanted:
        assert all(got + size - wanted >= wanted - got for size in rest)


def test_splits_that_sources_give_are_left_alone(tmp_path):
    found = clean(tmp_path, numbers(10), given={"validation": ["v"], "test": ["t"]}, test=5, validation=5)
    assert found.told == {}
    assert (texts_in(found, "validation"), texts_in(found, "test"), len(texts_in(found, "train"))) == (["v"], ["t"], 10)


@pytest.mark.parametrize("asked", [{"test": 10}, {"test": 6, "validation": 4}, {"test": 11}])
def test_asking_for_more_than_there_is_says_both_numbers(tmp_path, asked):
    with pytest.raises(
        HermitcrabError, match=r"asks for .*\d+ test.* rows, but the training source has 10 after cleaning"
    ):
        clean(tmp_path / "a", numbers(10), **asked)
    with pytest.raises(HermitcrabError, match="take asks for 11 training rows, but there are 10"):
        clean(tmp_path / "b", numbers(10), take=11)


def test_rows_that_are_not_drawn_are_dropped_with_a_reason(tmp_path):
    found = clean(tmp_path, numbers(10), take=4)
    assert len(texts_in(found, "train")) == 4
    assert [reason for _, _, reason in dropped(found)] == ["not drawn: take is 4"] * 6


def test_leak_is_found_named_and_explained(tmp_path, monkeypatch):
    given = {"validation": ["b"], "test": ["d"]}
    monkeypatch.setattr("hermitcrab.data.census.decontaminate", lambda census: None)
    with pytest.raises(
        HermitcrabError,
        match=f"1 train rows stand in validation data too, the first is row {row_id('sha256:train', 1)}",
    ):
        clean(tmp_path / "a", ["a", "B!", "c"], given=given, clean=["decontaminate"])
    clean(tmp_path / "b", ["a", "B!", "c"], given=given, clean=[])  # by their exact text they are apart
    with pytest.raises(HermitcrabError, match="1 validation rows stand in test data too"):
        clean(tmp_path / "c", ["a"], given={"validation": ["d"], "test": ["d"]}, clean=[])


def test_choosing_is_by_name_alone():
    sizes = {bytes(np.random.default_rng(i).bytes(16)): 1 for i in range(50)}
    assert choose(sizes, 10) == choose(dict(reversed(sizes.items())), 10) == set(sorted(sizes)[:10])
    assert split.choose(sizes, 0) == set()
