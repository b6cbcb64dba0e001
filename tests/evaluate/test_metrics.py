import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.metrics import METRICS, classification, measure, point
from hermitcrab.evaluate.statistics import wilson

LABELS = ["negative", "neutral", "positive"]
ENTRY = {"name", "version", "value", "low", "high", "n", "split", "model", "prompt_digest"}
ANSWER = st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "no idea", ""]))

NAMES = ["accuracy", "precision", "recall", "f1", "exact_match", "perplexity", "bits_per_byte"]


def table(reference, prediction, **more):
    ids = [f"row{i:05d}" for i in range(len(reference))]
    return pa.table({"row_id": ids, "reference": reference, "prediction": prediction, **more})


def by_name(entries):
    return {entry["name"]: entry for entry in entries}


@settings(max_examples=60, deadline=None)
@given(st.lists(ANSWER, min_size=1, max_size=60))
def test_label_metrics_are_those_of_scikit_learn(rows):
    reference, prediction = [r for r, _ in rows], [p for _, p in rows]
    told = by_name(classification(reference, prediction, LABELS, model="m", resamples=100))
    known = oracle.precision_recall_fscore_support(
        reference, prediction, labels=LABELS, average="macro", zero_division=0
    )
    assert told["accuracy"]["value"] == pytest.approx(oracle.accuracy_score(reference, prediction))
    assert [told[n]["value"] for n in ("precision", "recall", "f1")] == pytest.approx(known[:3])


def test_an_entry_has_exactly_its_fields_and_is_json():
    entries = measure(
        table(["a", "b"], ["a", "a"], nll=[1.0, 2.0], tokens=[1, 2], bytes=[3, 4]),
        NAMES, ["a", "b"],
        model="derived", split="validation", prompt_digest="sha256:00", resamples=100,
    )  # fmt: skip
    assert [e["name"] for e in entries] == NAMES
    for entry in json.loads(json.dumps(entries, allow_nan=False)):
        assert set(entry) == ENTRY
        assert (entry["n"], entry["split"], entry["model"], entry["prompt_digest"]) == (
            2,
            "validation",
            "derived",
            "sha256:00",
        )
        assert entry["version"] == METRICS[entry["name"]].version
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_what_is_none_of_the_labels_is_wrong_and_counted():
    told = by_name(classification(["a", "b", "a", "b"], ["a", "B", None, "b"], ["a", "b"], model="m", resamples=100))
    assert told["accuracy"]["value"] == 0.5
    assert told["unparsed"]["value"] == 0.5


def test_where_everything_is_a_label_unparsed_is_not_mentioned():
    assert "unparsed" not in by_name(classification(["a"], ["b"], ["a", "b"], model="m", resamples=100))


def test_a_reference_outside_of_the_choices_is_refused_by_row():
    with pytest.raises(
        HermitcrabError, match=r"row row00001: the reference 'bad' is none of the choices.*negative, neutral"
    ):
        measure(table(["positive", "bad"], ["positive", "bad"]), ["accuracy"], LABELS, model="m")


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(HermitcrabError, match="did you mean `accuracy`"):
        measure(table(["a"], ["a"]), ["acuracy"], ["a"], model="m")


def test_accuracy_has_wilsons_interval_and_a_wider_one_when_errors_are_clustered():
    hits = [i % 40 < 30 for i in range(400)]  # whole documents of ten rows are right or wrong
    rows = table(["a"] * 400, ["a" if h else "b" for h in hits])
    plain = measure(rows, ["accuracy"], ["a", "b"], model="m")[0]
    assert (plain["low"], plain["high"]) == pytest.approx(wilson(300, 400)[1:])
    documents = rows.append_column("document", pa.array([f"d{i // 10}" for i in range(400)]))
    clustered = measure(documents, ["accuracy"], ["a", "b"], model="m")[0]
    assert clustered["value"] == plain["value"]
    assert clustered["high"] - clustered["low"] > 2.5 * (plain["high"] - plain["low"])


def test_perplexity_and_bits_per_byte_have_their_closed_forms():
    random = np.random.default_rng(0)
    tokens = random.integers(5, 50, 300)
    nll = tokens * random.gamma(4, 0.5, 300)
    told = by_name(measure(
        table(["text"] * 300, pa.nulls(300, pa.string()), nll=nll, tokens=tokens, bytes=tokens * 4),
        ["accuracy", "exact_match", "perplexity", "bits_per_byte"], model="m", resamples=2000,
    ))  # fmt: skip
    assert set(told) == {"perplexity", "bits_per_byte"}  # nothing was predicted
    rate = nll.sum() / tokens.sum()
    assert told["perplexity"]["value"] == pytest.approx(math.exp(rate))
    assert told["bits_per_byte"]["value"] == pytest.approx(rate / 4 / math.log(2))
    # Delta method for a ratio: standard error of sum(nll) / sum(tokens).
    error = np.sqrt(300 * ((nll - rate * tokens).var(ddof=1))) / tokens.sum()
    half = (told["bits_per_byte"]["high"] - told["bits_per_byte"]["low"]) / 2
    assert half == pytest.approx(1.96 * error / 4 / math.log(2), rel=0.1)


def test_interval_of_macro_f1_covers_in_95_of_100_cases():
    random = np.random.default_rng(1)
    truth = oracle.f1_score(*simulated(random, 200_000), labels=LABELS, average="macro")
    inside = 0
    for seed in range(300):
        entry = classification(*simulated(random, 200), LABELS, model="m", names=["f1"], resamples=500, seed=seed)[0]
        inside += entry["low"] <= truth <= entry["high"]
    assert 0.92 <= inside / 300 <= 0.98


def simulated(random, n):
    reference = random.choice(3, n, p=[0.3, 0.3, 0.4])
    prediction = np.where(random.random(n) < 0.7, reference, random.integers(0, 3, n))
    return np.array(LABELS)[reference].tolist(), np.array(LABELS)[prediction].tolist()


def test_exact_match_takes_no_labels_and_passes_over_spaces_around():
    told = measure(table(["4 ", "5"], [" 4", "five"]), ["accuracy", "exact_match"], model="m")
    assert [(e["name"], e["value"]) for e in told] == [("exact_match", 0.5)]


def test_a_missing_likelihood_is_named_by_row():
    rows = table(["a", "b"], ["a", "b"], nll=[0.5, None], tokens=[1, 1])
    with pytest.raises(HermitcrabError, match="row row00001, column `nll`"):
        measure(rows, ["perplexity"], model="m")


def test_no_rows_are_not_measured():
    with pytest.raises(HermitcrabError, match="no test rows"):
        measure(table([], []), ["accuracy"], ["a"], model="m")


def test_point_is_the_value_without_an_interval():
    rows = table(["a", "b", "b"], ["a", "b", "a"], nll=[1.0, 2.0, 3.0], tokens=[1, 1, 1])
    assert point(rows, "accuracy", ["a", "b"]) == pytest.approx(2 / 3)
    assert point(rows, "perplexity") == pytest.approx(math.exp(2))
    with pytest.raises(HermitcrabError, match="bits_per_byte"):
        point(rows, "bits_per_byte")
