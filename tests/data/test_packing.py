"""Packing: nothing is lost, nothing is cut, nothing touches its neighbor; the order of rows is a pure function."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.data.packing import IGNORE, Document, best_fit, pack, step_rows


@given(st.lists(st.integers(1, 64), max_size=200))
def test_best_fit_places_every_document_once_and_overfills_no_row(lengths):
    bins = best_fit(lengths, 64)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= 64 for b in bins)


@given(st.lists(st.integers(1, 64), min_size=2, max_size=200))
def test_no_two_rows_could_have_been_one(lengths):
    sizes = sorted(sum(lengths[i] for i in b) for b in best_fit(lengths, 64))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 64


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="65 tokens does not fit into rows of 64"):
        best_fit([65], 64)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=40), st.integers(0, 2**32))
def test_every_label_survives_packing_in_its_document(lengths, seed):
    draw = np.random.default_rng(seed)
    documents = [
        Document(str(i), draw.integers(1, 99, n).astype(np.int32), draw.random(n) < 0.5) for i, n in enumerate(lengths)
    ]
    packed = pack(documents, 32, pad=0)
    expected = sorted(int(t) for d in documents for t in d.ids[1:][d.learn[1:]])
    assert sorted(packed.labels_RL[packed.labels_RL != IGNORE].tolist()) == expected
    for row, names in enumerate(packed.rows):
        at = 0
        for name in names:
            document = documents[int(name)]
            span = slice(at, at + len(document.ids))
            assert (packed.ids_RL[row, span] == document.ids).all()
            assert (packed.positions_RL[row, span] == np.arange(len(document.ids))).all()
            assert (
                packed.labels_RL[row, span.stop - 1] == IGNORE
            )  # the last token predicts nothing of the next document
            at = span.stop
        assert (packed.labels_RL[row, at:] == IGNORE).all()


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2**63 - 1))
def test_an_epoch_takes_every_row_once(count, per_step, seed):
    steps = -(-2 * count // per_step)
    stream = np.concatenate([step_rows(count, per_step, s, seed) for s in range(steps)])
    assert sorted(stream[:count]) == list(range(count))
    assert sorted(stream[count : 2 * count]) == list(range(count))


def test_the_order_differs_by_seed_and_epoch():
    first = step_rows(100, 100, 0, 0)
    assert (first == step_rows(100, 100, 0, 0)).all()
    assert (first != step_rows(100, 100, 1, 0)).any()
    assert (first != step_rows(100, 100, 0, 1)).any()
