"""Hidden tokens: which, how often, what they cost, and an encoder that transformers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.packing import IGNORE
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Train
from hermitcrab.tasks import Asking, Start
from hermitcrab.tasks.fill_mask import MASKINGS, FillMask

TEXTS = [f"on day {i} the sea is {('calm', 'gray', '平静')[i % 3]} {'and wide ' * (i % 4)}" for i in range(40)]
BASE: dict[str, Any] = {"kind": "scratch", "model_type": "bert", "name": "scratch", "files": [], "configuration": {
    "model_type": "bert", "vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}  # fmt: skip
ROWS = pa.table({"row_id": [f"{i:016x}" for i in range(40)], "text": TEXTS})


@pytest.fixture(scope="module")
def task() -> FillMask:
    fitted = FillMask.fit(ROWS, BASE, Path())
    FillMask.check_fitted(fitted, "r")
    return FillMask(Start(BASE, Path(), 1, fitted), Train(method="full"))


def test_the_tokenizer_loses_nothing_and_joins_no_chinese_characters(task):
    for text in (*TEXTS, "寄居蟹 naïve 🦀 x"):
        ids = task.encoded([text])[0][0].tolist()
        assert task.text.decode(ids) == text
    assert len(task.text.encode("平静平静")) == 2 * len(task.text.encode("平静"))


def test_fifteen_of_a_hundred_tokens_are_hidden_and_most_are_masks(task):
    ids_L = np.array([1, *[100 + i % 50 for i in range(1000)], 2], np.int64)
    seen_L, label_L = task.hidden("row", ids_L, 0)
    asked = label_L != IGNORE
    assert asked.sum() == 150
    assert not asked[[0, -1]].any()
    assert (label_L[asked] == ids_L[asked]).all()
    assert (seen_L[~asked] == ids_L[~asked]).all()
    assert (seen_L[asked] == task.mask).mean() == pytest.approx(0.8, abs=0.1)
    again, other = task.hidden("row", ids_L, 0), task.hidden("row", ids_L, 1)
    assert (again[0] == seen_L).all()
    assert (other[0] != seen_L).any()


def test_the_loss_is_that_of_the_whole_product_and_of_rows_alone(task):
    model = task.model(torch.float32).eval()
    examples, told = task.examples(ROWS, Ledger("train rows"))
    assert (len(examples), told["learnt"]) == (40 * MASKINGS, 40)
    assert examples.row_ids([3, 43]) == [ROWS["row_id"][3].as_py()] * 2
    batch = task.batch(examples, np.arange(12))
    whole = model(input_ids=batch["seen"], attention_mask=batch["mask"]).logits
    asked = batch["label"] != IGNORE
    assert torch.allclose(task.logits(model, batch), whole[asked], atol=1e-5)
    alone = [task.loss(model, task.batch(examples, np.array([i]))) for i in range(12)]
    found = task.loss(model, batch)
    assert found.count == sum(one.count for one in alone) == int(asked.sum())
    assert float(found.sum) == pytest.approx(float(sum(one.sum for one in alone)), rel=1e-5)


def test_rows_without_a_token_are_counted(task):
    empty = pa.table({"row_id": ["a", "b"], "text": ["", TEXTS[0]]})
    ledger = Ledger("train rows")
    assert task.examples(empty, ledger)[1]["learnt"] == 1
    with pytest.raises(HermitcrabError, match="no training row has a token to hide"):
        task.examples(empty.slice(0, 1), Ledger("train rows"))


def test_a_mask_is_filled_and_a_text_without_one_refused(task):
    model = task.model(torch.float32)
    (found,) = task.answer(model, ["on day 3 the [MASK] is calm"], Asking([], False, 8))
    assert found["prediction"]
    assert found["score"] < 0
    with pytest.raises(UsageError, match=r"input 1: expected a text with \[MASK\]"):
        task.answer(model, ["no mask"], Asking([], False, 8))


def test_transformers_opens_what_was_saved_and_fills_the_same(task, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = task.model(torch.float32)
    task.save(model, tmp_path)
    tokenizer, peer = AutoTokenizer.from_pretrained(tmp_path), AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert tokenizer.mask_token == "[MASK]"
    given = tokenizer("the sea is [MASK]", return_tensors="pt")
    place = (given["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
    with torch.no_grad():
        logits = peer(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    (found,) = task.answer(model, ["the sea is [MASK]"], Asking([], False, 8))
    assert tokenizer.decode([int(logits[0, place].argmax())]).strip() == found["prediction"]
