import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.value_added import compare, contamination, expected_effect, judge, noise_floor

LABELS = ["negative", "positive"]
OPTIONS = {"metrics": ["accuracy", "f1"], "labels": LABELS, "resamples": 1000}


def answers(right, seed=0, **more):
    """A table in which row i is answered rightly where right[i]; its rows come shuffled."""
    n = len(right)
    reference = [LABELS[i % 2] for i in range(n)]
    prediction = [LABELS[(i + (not r)) % 2] for i, r in enumerate(right)]
    order = np.random.default_rng(seed).permutation(n)
    table = pa.table(
        {"row_id": [f"{i:016x}" for i in range(n)], "reference": reference, "prediction": prediction, **more}
    )
    return table.take(order)


def share(n, k, start=0):
    """k of n rows right, from row `start` on."""
    return [(i - start) % n < k for i in range(n)]


def pair(result, b, metric="accuracy"):
    return next(p for p in result["pairs"] if (p["b"], p["metric"]) == (b, metric))


def test_a_better_model_is_called_better_with_both_results_in_the_sentence():
    tables = {
        "derived": answers(share(1000, 812), 1),
        "base": answers(share(1000, 695), 2),
        "base (3-shot)": answers(share(1000, 795, 100), 3),
        "majority": answers(share(1000, 500), 4),
    }
    result = compare(tables, {"base": 0.69, "base (3-shot)": 0.78}, **OPTIONS)
    assert result["verdict"] == "better"
    assert result["strongest"]["model"] == "base (3-shot)"
    assert result["strongest"]["verdict"] == "no evidence of added value"
    assert result["sentence"].startswith(
        "Better: accuracy of derived 0.812 against base 0.695 under the same prompt: +0.117 [+0.0"
    )
    assert (
        "against the strongest base variant, base (3-shot) (0.795; chosen on validation rows), +0.017"
        in result["sentence"]
    )
    assert result["sentence"].endswith("no evidence of added value.")
    assert (result["n"], result["metric"], result["unbeaten"]) == (1000, "accuracy", [])
    assert len(result["gained"]) == pair(result, "base")["gained"] == 117
    assert result["gained"] == sorted(result["gained"])
    assert result["lost"] == []
    json.dumps(result, allow_nan=False)


def test_the_strongest_variant_is_chosen_on_validation_rows_and_not_on_the_test():
    tables = {
        "derived": answers(share(400, 300)),
        "base": answers(share(400, 200)),
        "base (3-shot)": answers(share(400, 299)),
        "base (calibrated)": answers(share(400, 220)),
    }
    result = compare(tables, {"base": 0.5, "base (3-shot)": 0.6, "base (calibrated)": 0.7}, **OPTIONS)
    assert result["strongest"]["model"] == "base (calibrated)"
    assert "strongest base variant, base (calibrated)" in result["sentence"]


def test_without_validation_rows_the_sentence_says_what_was_not_measured():
    result = compare({"derived": answers(share(200, 180)), "base": answers(share(200, 100))}, None, **OPTIONS)
    assert result["strongest"] is None
    assert "was not measured" in result["sentence"]


def test_a_worse_model_is_called_worse():
    result = compare({"derived": answers(share(500, 300)), "base": answers(share(500, 400))}, None, **OPTIONS)
    assert result["verdict"] == "worse"
    assert len(result["lost"]) == 100


def test_an_interval_over_zero_is_no_evidence():
    result = compare({"derived": answers(share(300, 210)), "base": answers(share(300, 205, 7))}, None, **OPTIONS)
    assert result["verdict"] == "no evidence of added value"
    assert result["sentence"].startswith("No evidence of added value: ")
    assert pair(result, "base")["low"] < 0 < pair(result, "base")["high"]


def test_equal_answers_are_tied():
    result = compare({"derived": answers(share(50, 30), 1), "base": answers(share(50, 30), 2)}, None, **OPTIONS)
    assert result["verdict"] == "tied"
    assert pair(result, "base")["p_value"] == 1


def test_equal_scores_from_other_answers_are_not_tied():
    result = compare({"derived": answers(share(50, 30)), "base": answers(share(50, 30, 5))}, None, **OPTIONS)
    assert result["verdict"] == "no evidence of added value"


def test_a_simple_baseline_that_is_not_beaten_is_named():
    tables = {
        "derived": answers(share(400, 300)),
        "base": answers(share(400, 200)),
        "tfidf-logreg": answers(share(400, 310)),
    }
    result = compare(tables, None, **OPTIONS)
    assert result["unbeaten"] == ["tfidf-logreg"]
    assert "tfidf-logreg (0.775) is not beaten: -0.025" in result["sentence"]


def test_p_values_are_adjusted_over_all_pairs_and_metrics():
    tables = {
        "derived": answers(share(200, 150)),
        "base": answers(share(200, 130)),
        "majority": answers(share(200, 100)),
    }
    pairs = compare(tables, None, **OPTIONS)["pairs"]
    assert len(pairs) == 4
    smallest = min(pairs, key=lambda p: p["p_value"])
    assert smallest["p_holm"] == pytest.approx(4 * smallest["p_value"])
    assert all(p["p_holm"] >= p["p_value"] for p in pairs)
    assert [p["test"] for p in pairs] == ["mcnemar", "swap"] * 2


def test_clustered_rows_are_tested_by_document():
    documents = pa.array([f"d{i // 20}" for i in range(400)])
    tables = {
        "derived": answers(share(400, 300), document=documents),
        "base": answers(share(400, 240), document=documents),
    }
    clustered = compare(tables, None, **OPTIONS)
    plain = compare({m: t.drop_columns("document") for m, t in tables.items()}, None, **OPTIONS)
    assert (plain["verdict"], clustered["verdict"]) == (
        "better",
        "no evidence of added value",
    )  # three documents changed
    assert pair(clustered, "base")["test"] == "swap"
    assert clustered["groups"] == 20
    assert "400 rows in 20 documents" in clustered["sentence"]


def text_rows(nll, tokens=10, nbytes=40):
    n = len(nll)
    return pa.table({
        "row_id": [f"{i:016x}" for i in range(n)], "reference": ["t"] * n, "prediction": pa.nulls(n, pa.string()),
        "nll": nll, "tokens": np.full(n, tokens), "bytes": np.full(n, nbytes),
    })  # fmt: skip


def test_text_rows_are_compared_by_likelihood_and_lower_is_better():
    nll = np.random.default_rng(0).gamma(9, 3, 200)
    better = compare(
        {"derived": text_rows(nll * 0.9), "base": text_rows(nll)},
        None,
        metrics=["accuracy", "bits_per_byte"],
        resamples=500,
    )
    assert (better["verdict"], better["metric"]) == ("better", "bits_per_byte")
    assert pair(better, "base", "bits_per_byte")["high"] < 0
    assert "(lower is better)" in better["sentence"]
    assert better["gained"] == []
    worse = compare(
        {"derived": text_rows(nll), "base": text_rows(nll * 0.9)}, None, metrics=["perplexity"], resamples=500
    )
    assert worse["verdict"] == "worse"
    same = compare({"derived": text_rows(nll), "base": text_rows(nll)}, None, metrics=["perplexity"], resamples=500)
    assert same["verdict"] == "tied"


def test_perplexities_of_other_tokenizers_are_not_compared():
    tables = {"derived": text_rows(np.full(50, 9.0)), "base": text_rows(np.full(50, 9.5), tokens=12)}
    result = compare(tables, None, metrics=["perplexity", "bits_per_byte"], resamples=200)
    assert [p["metric"] for p in result["pairs"]] == ["bits_per_byte"]
    assert result["not_compared"][0]["metric"] == "perplexity"
    assert "bits_per_byte" in result["not_compared"][0]["reason"]


def test_a_variant_of_the_derived_model_is_no_opponent_of_it():
    tables = {
        "derived": answers(share(100, 80)),
        "derived (calibrated)": answers(share(100, 85)),
        "base": answers(share(100, 40)),
    }
    result = compare(tables, None, **OPTIONS)
    assert {p["b"] for p in result["pairs"]} == {"base"}
    assert result["unbeaten"] == []
    tables["derived (calibrated)"] = answers(share(90, 80))
    with pytest.raises(HermitcrabError, match="same rows"):
        compare(tables, None, **OPTIONS)


def test_a_model_without_a_base_is_not_compared():
    result = compare({"derived": answers(share(20, 10))}, None, **OPTIONS)
    assert result["verdict"] == "not compared"
    assert result["metric"] is None


def test_other_rows_are_refused():
    derived, base = answers(share(20, 10)), answers(share(20, 10))
    with pytest.raises(HermitcrabError, match=r"did not answer the same rows: 2 only by `derived` \(such as 0{15}0\)"):
        compare(
            {"derived": derived, "base": base.filter(pa.compute.greater(base["row_id"], f"{1:016x}"))}, None, **OPTIONS
        )
    three = base.filter(pa.compute.equal(base["row_id"], f"{3:016x}"))
    with pytest.raises(HermitcrabError, match=r"answered row 0{15}3 twice"):
        compare({"derived": derived, "base": pa.concat_tables([base, three])}, None, **OPTIONS)
    other = base.set_column(1, "reference", pa.array(["positive"] * 20))
    with pytest.raises(HermitcrabError, match="another reference for `base`"):
        compare({"derived": derived, "base": other}, None, **OPTIONS)
    with pytest.raises(HermitcrabError, match="no test rows"):
        compare({"derived": derived.slice(0, 0), "base": base.slice(0, 0)}, None, **OPTIONS)
    with pytest.raises(HermitcrabError, match="no column `prediction`"):
        compare({"derived": derived.drop_columns("prediction"), "base": base}, None, **OPTIONS)
    with pytest.raises(HermitcrabError, match="no answers of `derived`"):
        compare({"base": base}, None, **OPTIONS)


def test_other_prompts_are_refused():
    tables = {"derived": answers(share(20, 10)), "base": answers(share(20, 10))}
    with pytest.raises(HermitcrabError, match="different prompts"):
        compare(tables, None, prompts={"derived": "sha256:1", "base": "sha256:2"}, **OPTIONS)


def test_one_row_is_no_evidence():
    result = compare({"derived": answers([True]), "base": answers([False])}, None, **OPTIONS)
    assert result["verdict"] == "no evidence of added value"
    assert "interval unknown" in result["sentence"]


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["accuracy", "perplexity"]))
def test_the_verdict_needs_both_the_interval_and_the_p_value(low, width, p, metric):
    told = judge({"low": low, "high": low + width, "p_holm": p, "metric": metric}, False, 0.95)
    shown = p < 0.05 and not low <= 0 <= low + width
    assert (told == "no evidence of added value") != shown
    if shown:
        assert told == ("better" if (low > 0) == (metric == "accuracy") else "worse")


def test_contamination_counts_copies_and_shared_runs_of_words():
    train = [
        "The film, as a whole, is rather long!",
        "one two three four five six seven eight nine",
        "这部电影非常好看大家都喜欢",
    ]
    test = [
        "the film as a whole is RATHER   long",  # the same but for case, space and punctuation
        "zero one two three four five six seven eight",  # eight words in a row
        "one two three four five six seven",  # seven
        "这部电影非常好看大家都不喜欢",  # characters count as words where nothing stands between them
        "something else",
    ]
    assert contamination(train, test) == {"n": 5, "train_rows": 3, "exact": 1, "ngram": 3, "words": 8, "short": 2}


def test_contamination_stands_in_the_sentence():
    tables = {"derived": answers(share(20, 10)), "base": answers(share(20, 10))}
    result = compare(tables, None, contamination={"exact": 3, "ngram": 4, "n": 20}, **OPTIONS)
    assert result["sentence"].endswith("3 test rows stand in the training data.")


def test_noise_floor_counts_flips():
    told = noise_floor([-1.0, -2.0, -3.0], [-1.0, -2.5, -3.0], ["a", "b", "a"], ["a", "a", "a"])
    assert told == {"n": 3, "max_score_difference": 0.5, "flips": 1}
    with pytest.raises(HermitcrabError, match="same rows"):
        noise_floor([1.0], [1.0, 2.0], ["a"], ["a"])


def test_what_the_sample_could_show_names_its_assumption():
    told = expected_effect(1066, "accuracy")
    assert told["difference"] == pytest.approx(0.0384, abs=0.001)
    assert "20% of them" in told["assumes"]
    assert expected_effect(1066, "perplexity")["difference"] is None
