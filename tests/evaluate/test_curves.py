"""Areas under curves, calibration and errors of numbers, against scikit-learn and numpy; and models compared by them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

sklearn = pytest.importorskip("sklearn.metrics")

from hermitcrab.evaluate.answers import read
from hermitcrab.evaluate.metrics import find, measure
from hermitcrab.evaluate.value_added import compare

LABELS = {2: ["no", "是"], 3: ["a", "b", "c"]}


def classified(n: int, c: int, skill: float, seed: int = 0, ties: bool = True) -> pa.Table:
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, c, n)
    noise = np.random.default_rng(seed + 100).normal(size=(n, c))
    logits = noise + skill * np.eye(c)[truth]
    logits = logits.round(1) if ties else logits
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    names = LABELS[c]
    return pa.table({
        "row_id": [f"{i:06d}" for i in range(n)], "reference": [names[i] for i in truth],
        "prediction": [names[i] for i in log_p.argmax(1)], "score": log_p.max(1), "scores": log_p.tolist(),
    })  # fmt: skip


def arrays(table: pa.Table, c: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([LABELS[c].index(r) for r in table["reference"].to_pylist()]), np.exp(
        np.array(table["scores"].to_pylist())
    )


@pytest.mark.parametrize("c", [2, 3])
def test_metrics_of_probabilities_are_scikit_learns(c):
    table = classified(300, c, 1.0)
    truth, p = arrays(table, c)
    names = ["roc_auc", "average_precision", "log_loss", "brier_score"]
    told = {m["name"]: m for m in measure(table, names, LABELS[c], model="m", resamples=300)}
    hot = np.eye(c)[truth]
    ranked = np.array(table["scores"].to_pylist())  # as they are: exp() would tie and untie some
    scores, hits = (ranked[:, 1], truth) if c == 2 else (ranked, hot)
    assert told["roc_auc"]["value"] == pytest.approx(sklearn.roc_auc_score(hits, scores, average="macro"))
    assert told["average_precision"]["value"] == pytest.approx(
        sklearn.average_precision_score(hits, scores, average="macro")
    )
    assert told["log_loss"]["value"] == pytest.approx(sklearn.log_loss(truth, p))
    assert told["brier_score"]["value"] == pytest.approx(((p - hot) ** 2).sum(1).mean() / (2 if c == 2 else 1))
    assert all(m["low"] < m["value"] < m["high"] for m in told.values())


def test_a_row_drawn_twice_is_a_row_twice():
    table = classified(60, 2, 0.7)
    weights = np.random.default_rng(1).integers(0, 3, (5, 60)).astype(float)
    for name, oracle in (("roc_auc", sklearn.roc_auc_score), ("average_precision", sklearn.average_precision_score)):
        found = find(name).weighted(read(table, "m"), LABELS[2])(weights)
        truth, score = arrays(table, 2)[0], np.array(table["scores"].to_pylist())[:, 1]
        assert found == pytest.approx([oracle(truth, score, sample_weight=w) for w in weights])
    assert np.isnan(find("roc_auc").weighted(read(table, "m"), LABELS[2])(np.zeros((1, 60)))).all()


def test_calibration_error_is_that_of_bins():
    table = classified(400, 3, 2.0, ties=False)
    truth, p = arrays(table, 3)
    bins = np.minimum((p.max(1) * 15).astype(int), 14)
    wanted = sum(abs(p.max(1)[bins == b].sum() - (p.argmax(1) == truth)[bins == b].sum()) for b in range(15)) / 400
    assert measure(table, ["calibration_error"], LABELS[3], model="m", resamples=200)[0]["value"] == pytest.approx(
        wanted
    )


def test_models_are_compared_by_what_is_no_function_of_sums():
    good, bad = classified(400, 2, 1.5), classified(400, 2, 0.2)
    told = compare(
        {"derived": good, "base": bad}, metrics=["roc_auc"], labels=LABELS[2], prompted=False, resamples=1000
    )
    (pair,) = told["pairs"]
    assert (told["verdict"], pair["test"], told["gained"]) == ("better", "bootstrap", [])
    assert 0 < pair["low"] < pair["difference"] < pair["high"]
    assert "no function of sums" in told["method"]["p_value"]
    again = compare(
        {"derived": good, "base": good}, metrics=["roc_auc"], labels=LABELS[2], prompted=False, resamples=1000
    )
    assert again["verdict"] == "tied"


def numbers(n: int, spread: float, seed: int = 0) -> pa.Table:
    truth = np.random.default_rng(0).normal(3, 2, n)
    said = truth + np.random.default_rng(seed + 5).normal(0, spread, n)
    return pa.table({"row_id": [f"{i:06d}" for i in range(n)], "reference": truth, "prediction": said})


def test_metrics_of_numbers_are_scikit_learns_and_compare_models():
    table = numbers(200, 1.0)
    truth, said = (np.array(table[name].to_pylist()) for name in ("reference", "prediction"))
    told = {m["name"]: m["value"] for m in measure(
        table, ["mean_squared_error", "root_mean_squared_error", "mean_absolute_error", "r2"], model="m", resamples=200)}  # fmt: skip
    assert told["mean_squared_error"] == pytest.approx(sklearn.mean_squared_error(truth, said))
    assert told["root_mean_squared_error"] == pytest.approx(sklearn.mean_squared_error(truth, said) ** 0.5)
    assert told["mean_absolute_error"] == pytest.approx(sklearn.mean_absolute_error(truth, said))
    assert told["r2"] == pytest.approx(sklearn.r2_score(truth, said))
    found = compare(
        {"derived": table, "base": numbers(200, 2.0)},
        metrics=["root_mean_squared_error"],
        prompted=False,
        resamples=500,
    )
    assert (found["verdict"], found["pairs"][0]["test"], found["pairs"][0]["gained"]) == ("better", "swap", 0)
    assert "lower is better" in found["sentence"]


def test_what_is_no_number_is_refused_with_its_row():
    from hermitcrab.errors import HermitcrabError

    table = numbers(5, 1.0).set_column(2, "prediction", [[1.0, 2.0, None, 4.0, 5.0]])
    with pytest.raises(
        HermitcrabError, match=r"row 000002: expected `prediction` to be a finite number. Received: None"
    ):
        measure(table, ["r2"], model="m", resamples=200)
