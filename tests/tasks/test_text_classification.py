"""text-classification: a body with a new head, batches in groups, cuts that are counted, labels of a base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from tiny import write_tokenizer

from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.base import describe
from hermitcrab.models.load import load_model
from hermitcrab.recipe import Base, Evaluate, Train
from hermitcrab.references import Resolved
from hermitcrab.tasks import Asking, Start
from hermitcrab.tasks.text_classification import TextClassification

TEXTS = [
    "a film",
    "a film that is long and warm and bright and clever",
    "dull",
    "warm and dull",
    "the film is bright",
    "a",
    "cold film",
]


def encoder(folder: Path, head: str = "", labels: tuple[str, ...] = (), hidden: int = 32) -> Path:
    """A tiny BERT as transformers saves it: the body alone, with a head for masks, or with one for labels."""
    import transformers

    write_tokenizer(folder, TEXTS)
    config = transformers.BertConfig(vocab_size=400, hidden_size=hidden, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                                     max_position_embeddings=32, pad_token_id=0, id2label=dict(enumerate(labels)) or None)  # fmt: skip
    torch.manual_seed(0)
    getattr(transformers, f"Bert{head or 'Model'}")(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


def start_of(folder: Path, fitted: dict) -> Start:
    base = describe(folder, Resolved("base", "base", "", folder, None, "folder"), Base(path="base"), True)
    return Start(base, folder, None, fitted)


def rows(texts: list[str], labels: list[str]) -> pa.Table:
    return pa.table({"row_id": [f"{i:016d}" for i in range(len(texts))], "document": pa.nulls(len(texts), pa.string()),
                     "text": texts, "label": labels})  # fmt: skip


FITTED = {"labels": ["bad", "good"]}
TRAIN = Train(method="full", sequence_length=16, final_dtype="float32")


@pytest.mark.parametrize("head", ["", "ForMaskedLM"])
def test_a_body_gets_a_new_head_from_the_seed_of_the_training(tmp_path, head):
    start = start_of(encoder(tmp_path / "base", head), FITTED)
    one, again, other = (
        TextClassification(start, TRAIN.model_copy(update={"seed": s})).model(torch.float32) for s in (1, 1, 2)
    )
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    body = one.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(body, other.bert.encoder.layer[0].output.dense.weight)
    saved = load_model(start.base, start.path, torch.float32, "MASKED_LM") if head else None
    assert saved is None or torch.equal(body, saved.bert.encoder.layer[0].output.dense.weight)


def test_a_body_that_does_not_fit_is_refused(tmp_path):
    folder = encoder(tmp_path / "base")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(HermitcrabError, match=r"do not fit: 1 missing keys.*output\.dense\.weight"):
        TextClassification(start_of(folder, FITTED), TRAIN).model(torch.float32)


def test_rows_in_groups_have_the_logits_that_each_has_alone(tmp_path):
    task = TextClassification(start_of(encoder(tmp_path / "base"), FITTED), TRAIN)
    model = task.model(torch.float32).eval()
    whole = task.outputs_of(model, rows(TEXTS, ["good"] * len(TEXTS)))
    alone = torch.cat([task.outputs_of(model, rows([text], ["good"])) for text in TEXTS])
    assert torch.allclose(whole, alone, atol=1e-5)
    groups = task.grouped(task.encoded(TEXTS * 3)[0])["groups"]
    assert len(groups) == 4
    padding = sum(int((mask == 0).sum()) for _, mask in groups)
    longest = max(ids.shape[1] for ids, _ in groups)
    together = sum(longest - int(n) for _, mask in groups for n in mask.sum(1))
    assert padding < together / 2


@pytest.mark.parametrize(
    ("truncate", "kept", "changed"),
    [("drop", 1, {}), ("right", 2, {"cut on the right": 1}), ("left", 2, {"cut on the left": 1})],
)
def test_long_texts_are_dropped_or_cut_and_counted(tmp_path, truncate, kept, changed):
    part = Train.model_validate({**TRAIN.model_dump(exclude_unset=True), "sequence_length": 8, "truncate": truncate})
    task = TextClassification(start_of(encoder(tmp_path / "base"), FITTED), part)
    ledger = Ledger("rows")
    found, _ = task.examples(rows([TEXTS[0], "film " * 30], ["good", "bad"]), ledger)
    told = ledger.as_json()
    assert (len(found), told["kept"], told["changed"]) == (kept, kept, changed)
    assert max(map(len, found.ids)) <= 8
    made = task.predict(task.model(torch.float32), rows(["film " * 30, "a"], ["good", "bad"]), Evaluate())
    assert made.schema.metadata[b"prompts_cut"] == b"1"


def test_what_fits_goes_with_the_tokenizer(tmp_path):
    task = TextClassification(start_of(encoder(tmp_path / "base"), FITTED), TRAIN)
    task.save(task.model(torch.float32), tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    again = TextClassification(start_of(tmp_path / "saved", FITTED), Train())
    assert (again.most, again.left) == (16, False)
    assert TextClassification.opens(tmp_path / "saved") == FITTED


def test_a_base_keeps_the_order_of_its_labels_and_refuses_others(tmp_path):
    folder = encoder(tmp_path / "base", "ForSequenceClassification", ("good", "bad"))
    base = start_of(folder, {}).base
    fit = TextClassification.fit(rows(TEXTS[:2], ["bad", "good"]), base, folder)
    assert fit == {"labels": ["good", "bad"]}
    with pytest.raises(HermitcrabError, match="knows other labels"):
        TextClassification.fit(rows(TEXTS[:2], ["bad", "fine"]), base, folder)


def test_more_positions_than_the_base_has_are_refused(tmp_path):
    folder = encoder(tmp_path / "base")
    with pytest.raises(HermitcrabError, match="has 32 positions"):
        TextClassification(start_of(folder, FITTED), TRAIN.model_copy(update={"sequence_length": 64}))


def test_an_explanation_names_the_words_as_they_stand_in_the_text(tmp_path):
    pytest.importorskip("captum")
    from hermitcrab.explaining import attribute

    task = TextClassification(start_of(encoder(tmp_path / "base"), FITTED), TRAIN)
    question = task.question(task.model(torch.float32).eval(), "the film is bright", Asking([], False, 1))
    assert "".join("".join(question.names).split()) == "thefilmisbright"
    told = attribute(question, "occlusion")
    assert np.abs([part["contribution"] for part in told["parts"]]).max() > 0
    with pytest.raises(HermitcrabError, match="would be cut"):
        task.question(task.model(torch.float32), "film " * 40, Asking([], False, 1))
