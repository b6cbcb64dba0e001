"""Translation: a tokenizer learnt from rows, padding that changes nothing, what is cut is counted, and a folder that transformers opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.load import load_model
from hermitcrab.recipe import Train
from hermitcrab.tasks import Start
from hermitcrab.tasks.translation import Translation

SOURCE = [
    f"{verb} the {noun} {'now ' * (i % 5)}{i}"
    for i in range(6)
    for verb in ("open", "close")
    for noun in ("file", "page")
]
TARGET = [
    f"{'打开' if 'open' in text else '关闭'}{'文件' if 'file' in text else '页面'} {text.split()[-1]}"
    for text in SOURCE
]
BASE: dict[str, Any] = {"kind": "scratch", "model_type": "marian", "name": "scratch", "files": [], "configuration": {
    "model_type": "marian", "vocab_size": 300, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64, "dropout": 0.0}}  # fmt: skip


def rows(source: list[str], target: list[str]) -> pa.Table:
    return pa.table({"row_id": [f"{i:016x}" for i in range(len(source))], "source_text": source, "target_text": target})


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return Translation.fit(rows(SOURCE, TARGET), BASE, Path())


def task(fitted: dict[str, Any], **train: Any) -> Translation:
    return Translation(Start(BASE, Path(), 1, fitted), Train(method="full", **train))


def test_the_tokenizer_is_learnt_from_both_sides_and_loses_nothing(fitted):
    Translation.check_fitted(fitted, "r")
    made = task(fitted)
    for text in (*SOURCE, *TARGET, "naïve 🦀 \t x"):
        ids = made.encoded([text])[0][0]
        assert ids[-1] == made.end
        assert made.text.decode(ids).removeprefix(" ") == text
    assert Translation.fit(rows(SOURCE, TARGET), BASE, Path()) == fitted


def test_a_strangers_tokenizer_is_refused(fitted):
    with pytest.raises(HermitcrabError, match="cannot be used"):
        Translation.check_fitted({**fitted, "tokenizer": {"model": "none"}}, "r")
    with pytest.raises(HermitcrabError, match="has no pad_token"):
        Translation.check_fitted({**fitted, "special": {"eos_token": "</s>"}}, "r")


def test_padding_and_grouping_change_no_loss(fitted):
    made = task(fitted)
    model = made.model(torch.float32).eval()
    examples, _ = made.examples(rows(SOURCE, TARGET), Ledger("train rows"))
    whole = made.loss(model, made.batch(examples, torch.arange(len(SOURCE)).numpy()))
    alone = [made.loss(model, made.batch(examples, torch.tensor([i]).numpy())) for i in range(len(SOURCE))]
    assert whole.count == sum(one.count for one in alone) == sum(map(len, examples.target))
    assert float(whole.sum) == pytest.approx(float(sum(one.sum for one in alone)), rel=1e-5)
    nll, tokens, sizes = made.nats(model, made.encoded(SOURCE)[0], TARGET, 7)
    assert nll == pytest.approx([float(one.sum) for one in alone], rel=1e-4)
    assert tokens == [one.count for one in alone]
    assert sizes == [len(text.encode()) for text in TARGET]
    _, (tokens_cut,), (size_cut,) = made.nats(model, made.encoded(["a"])[0], ["word " * 200], 1)
    assert tokens_cut == 64
    assert size_cut < 5 * 200


def test_long_pairs_are_dropped_or_cut_and_counted(fitted):
    long = rows([*SOURCE, "word " * 200], [*TARGET, "长"])
    ledger = Ledger("train rows")
    _, told = task(fitted).examples(long, ledger)
    assert told["learnt"] == len(SOURCE)
    examples, told = task(fitted, truncate="right").examples(long, Ledger("train rows"))
    assert told["learnt"] == len(SOURCE) + 1
    assert len(examples.source[-1]) == 64
    assert examples.source[-1][-1] == task(fitted).end
    with pytest.raises(HermitcrabError, match="no training row fits 64 tokens"):
        task(fitted).examples(long.slice(len(SOURCE)), Ledger("train rows"))


def test_transformers_opens_what_was_saved_and_says_the_same(fitted, tmp_path):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    made = task(fitted)
    model = made.model(torch.float32)
    made.save(model, tmp_path)
    said, _ = made.translated(model, made.encoded(SOURCE[:3])[0], 12, 3)
    tokenizer, peer = AutoTokenizer.from_pretrained(tmp_path), AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    given = tokenizer(SOURCE[:3], return_tensors="pt", padding=True)
    found = peer.generate(input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=12)
    assert [text.strip() for text in tokenizer.batch_decode(found, skip_special_tokens=True)] == said


def test_positions_that_no_file_has_are_computed_and_bounded(fitted, tmp_path):
    """A model most of whose parameters beyond the vocabulary are sinusoids is opened; one that asks for a wall of them is not."""
    wide = {**BASE, "configuration": {**BASE["configuration"], "d_model": 64, "max_position_embeddings": 128}}
    made = Translation(Start(wide, Path(), 1, fitted), Train(method="full"))
    model = made.model(torch.float32)
    made.save(model, tmp_path)
    again = load_model({"files": [], "name": "b"}, tmp_path, torch.float32, Translation.kind)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 20}))
    with pytest.raises(HermitcrabError, match="the configuration asks for"):
        load_model({"files": [], "name": "b"}, tmp_path, torch.float32, Translation.kind)
