"""image-classification: sums and counts, labels of the training rows, and the formulas that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from tiny import stripes

from hermitcrab.data.images import encode_png
from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.models import architectures
from hermitcrab.recipe import Evaluate, Train, parse
from hermitcrab.tasks import Start, check_recipe
from hermitcrab.tasks.image_classification import ImageClassification

NAMES = ["zebra", "ant", "寄居蟹"]
SCRATCH = {"kind": "scratch"}


def rows(count: int, seed: int = 0) -> pa.Table:
    pixels, labels = stripes(count, seed)
    return pa.table({
        "row_id": [f"{seed:04x}{i:012x}" for i in range(count)],
        "source": ["test"] * count,
        "document": pa.array([None] * count, pa.string()),
        "image": [encode_png(p.tobytes(), *p.shape) for p in pixels],
        "label": [NAMES[label] for label in labels],
    })  # fmt: skip


def task(**settings: Any) -> ImageClassification:
    config = architectures.complete({"model_type": "mlp", "hidden_sizes": [12]}, "here")
    base = {"kind": "scratch", "model_type": "mlp", "configuration": config, "files": []}
    start = Start(base, Path(), 3, ImageClassification.fit(rows(30), SCRATCH, Path()))
    return ImageClassification(start, Train(method="full", **settings))


def test_what_is_fitted_is_of_the_training_rows():
    fitted = ImageClassification.fit(rows(30), SCRATCH, Path())
    pixels, _ = stripes(30, 0)
    assert fitted["labels"] == sorted(NAMES)
    assert fitted["image"] == [8, 8, 1]
    assert fitted["mean"] == [pytest.approx(pixels.mean() / 255, abs=1e-6)]
    assert fitted["std"] == [pytest.approx(pixels.std() / 255, abs=1e-6)]
    ImageClassification.check_fitted(fitted, "here")
    made = task()
    examples, _ = made.examples(rows(30), Ledger("rows"))
    scaled = made.batch(examples, np.arange(30)).pixels_BCHW
    assert scaled.shape == (30, 1, 8, 8)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scaled.std()) == pytest.approx(1, abs=1e-3)


def test_a_channel_that_never_varies_is_only_shifted():
    flat = rows(6).set_column(3, "image", [[encode_png(bytes([7] * 64), 8, 8)] * 6])
    assert ImageClassification.fit(flat, SCRATCH, Path())["std"] == [1.0]


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_the_loss_is_a_sum_and_a_count(loss):
    made = task(loss=loss)
    examples, _ = made.examples(rows(20), Ledger("rows"))
    model = made.model(torch.float32)
    whole = made.loss(model, made.batch(examples, np.arange(20)))
    parts = [made.loss(model, made.batch(examples, np.arange(i, min(20, i + 7)))) for i in range(0, 20, 7)]
    assert sum(p.count for p in parts) == whole.count == 20
    assert float(sum(p.sum for p in parts)) == pytest.approx(float(whole.sum), rel=1e-5)


def test_mse_is_the_brier_score():
    made = task(loss="mse")
    examples, _ = made.examples(rows(5), Ledger("rows"))
    batch, model = made.batch(examples, np.arange(5)), made.model(torch.float32)
    shares = model(batch.pixels_BCHW).logits.softmax(-1).detach().numpy()
    truth = np.eye(3)[[sorted(NAMES).index(name) for name in ImageClassification.answers(rows(5))]]
    assert float(made.loss(model, batch).sum) == pytest.approx(((shares - truth) ** 2).sum(), rel=1e-5)


def test_initial_weights_follow_from_their_seed_alone():
    torch.manual_seed(99)
    first = task().model(torch.float32).state_dict()
    torch.manual_seed(1)
    second = task().model(torch.float32).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    bound = 1 / 8  # of torch.nn.Linear: 1 / sqrt(64 inputs)
    assert 0.9 * bound < float(first["layers.0.weight"].abs().max()) <= bound


def test_answers_do_not_depend_on_the_batch_size_and_come_in_order():
    made, asked = task(), rows(23, seed=4)
    model = made.model(torch.float32)
    one, all_at_once = (made.predict(model, asked, Evaluate(), None, size) for size in (1, 23))
    assert one["row_id"].to_pylist() == asked["row_id"].to_pylist()
    assert one["prediction"].to_pylist() == all_at_once["prediction"].to_pylist()
    assert np.allclose(one["scores"].to_pylist(), all_at_once["scores"].to_pylist(), atol=1e-6)
    assert np.allclose(np.exp(one["scores"].to_pylist()).sum(1), 1)
    assert one.schema.metadata[b"prompt_digest"].decode() == made.asked(asked, Evaluate())


def test_a_reference_that_the_model_never_saw_is_refused_before_and_after_training():
    odd = rows(3).set_column(4, "label", [["ant", "zebra", "wasp"]])
    splits = {"train": rows(9), "validation": rows(0), "test": odd}
    with pytest.raises(HermitcrabError, match=r"test rows have labels that no training row has: wasp \(1 of them\)"):
        ImageClassification.check_rows(Evaluate(), splits)
    made = task()
    model = made.model(torch.float32)
    with pytest.raises(HermitcrabError, match="the model has no label 'wasp'"):
        made.predict(model, odd, Evaluate())
    with pytest.raises(HermitcrabError, match=r"training rows have 1 label \(ant\)"):
        ImageClassification.check_rows(Evaluate(), {**splits, "train": rows(9).set_column(4, "label", [["ant"] * 9])})


@pytest.mark.parametrize(
    "change",
    [{"labels": ["a"]}, {"labels": ["a", "a"]}, {"labels": "ab"}, {"image": [8, 8]}, {"image": [8, 8, 2]}, {"image": [0, 8, 1]},
     {"mean": [0.5, 0.5]}, {"std": [0.0]}, {"std": None}, {"mean": ["0"]}],
    ids=str,
)  # fmt: skip
def test_a_strangers_record_cannot_say_what_fitting_could_not(change):
    fitted = ImageClassification.fit(rows(9), SCRATCH, Path())
    with pytest.raises(HermitcrabError, match="`fitted` is not what image-classification fits"):
        ImageClassification.check_fitted({**fitted, **change}, "hermitcrab.json")


BASE = """
name: x
task: image-classification
base: {path: scratch, architecture: {model_type: mlp}, license: MIT}
data: {train: {path: a, labels: b, type: idx, format: image-label, license: MIT}}
train: {method: full}
"""


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.method=lora"], "train.method: image-classification trains all weights; set `method: full`"),
        (["train.sequence_length=99"], "train.sequence_length: means nothing to image-classification"),
        (["evaluate.choices=[a, b]"], "evaluate.choices: means nothing to image-classification"),
        (["evaluate.few_shot=2"], "evaluate.few_shot: means nothing"),
        (
            ["evaluate.baselines=[tfidf-logreg]"],
            "evaluate.baselines: image-classification has no baseline `tfidf-logreg`",
        ),
        (["compress={gguf: [Q8_0]}"], "compress.gguf: image-classification can be compressed to: onnx, prune, distill"),
        (["evaluate.metrics=[perplexity]"], "evaluate.metrics: image-classification has no metric `perplexity`"),
        (
            ["task=text-generation"],
            "data.train.format: text-generation takes rows of format prompt-completion or messages or text",
        ),
    ],
)
def test_what_means_nothing_to_the_task_is_refused_by_its_key(overrides, told):
    with pytest.raises(UsageError, match=told.replace("(", r"\(")):
        check_recipe(parse(BASE, "x.yaml", overrides))
    check_recipe(parse(BASE, "x.yaml"))
