import json

import pytest

from hermitcrab.errors import HermitcrabError
from hermitcrab.report.gather import gather


def test_facts_are_json_and_hold_what_the_artifacts_say(sample):
    record, artifacts = sample().run()
    facts = gather(record, artifacts)
    json.dumps(facts, allow_nan=False)
    assert facts["base"]["name"] == "Some Base 135M"
    assert [m["model"] for m in facts["value"]["models"]][:2] == ["derived", "base"]
    assert len(facts["value"]["metrics"]) == 7
    assert facts["added"]["rows"] == 300
    assert len(facts["curve"]["train"]) == 300
    assert facts["license"] == "Apache-2.0"
    assert [entry["name"] for entry in facts["ledger"]] == [
        "train rows", "train rows", "settings searched", "train tokens", "test rows",
    ]  # fmt: skip
    assert [s["reused"] for s in facts["cost"]["stages"]] == [True, *[False] * 6]
    assert facts["cost"]["joules"] is None
    assert "no readable energy counter" in facts["cost"]["energy_method"]
    assert facts["artifacts"]["train"] == artifacts["train"].digest


def test_stages_stand_in_the_order_in_which_they_ran(sample):
    record, artifacts = sample().run()
    facts = gather(record, dict(sorted(artifacts.items())))
    assert list(facts["artifacts"]) == list(artifacts)
    assert [s["stage"] for s in facts["cost"]["stages"]] == list(facts["artifacts"])


def test_each_pair_has_a_verdict_of_its_own(sample):
    pairs = gather(*sample().run())["value"]["pairs"]
    deciding = {p["b"]: p["verdict"] for p in pairs if p["metric"] == "accuracy"}
    assert deciding["base"] == deciding["majority"] == "better"
    assert deciding["base (4-shot, calibrated)"] == "no evidence of added value"


def test_a_run_that_got_no_further_than_its_data_has_facts_too(sample):
    made = sample()
    made.collect()
    facts = gather(made.record(), made.artifacts)
    assert facts["value"] is facts["added"] is facts["curve"] is facts["license"] is None
    assert len(facts["data"]) == 2


def test_texts_are_read_only_where_the_recipe_asks(sample):
    def secret(i):
        return f"secret {i}: mail a.b@example.com"

    hidden = gather(*sample("hidden", text=secret).run())
    assert hidden["value"]["texts"] is None
    assert "secret" not in json.dumps(hidden)
    shown = gather(*sample("shown", text=secret, show_text=True).run())["value"]["texts"]["gained"]
    assert [row["row_id"] for row in shown] == gather(*sample("shown", show_text=True).run())["value"]["gained"][:10]
    first = shown[0]
    assert first["question"] == f"secret {int(first['row_id'], 16)}: mail [email]"
    assert first["answers"]["derived"] == first["reference"] != first["answers"]["base"]


def test_what_was_built_on_nothing_is_judged_against_a_named_baseline(from_scratch):
    facts = gather(*from_scratch(show_text=True).run())
    assert facts["value"]["against"] == "logistic-regression"
    assert set(facts["value"]["texts"]["gained"][0]["answers"]) == {"derived", "logistic-regression"}
    assert facts["value"]["classes"]["labels"][0] == "T-shirt/top"
    assert facts["added"]["parity"] is None


def test_a_setting_of_tokens_is_told_only_of_a_training_that_counts_them(sample, from_scratch):
    assert gather(*sample().run())["added"]["settings"]["sequence_length"] == 256
    assert "sequence_length" not in gather(*from_scratch().run())["added"]["settings"]


def test_energy_is_summed_where_every_stage_knows_it(sample):
    record, artifacts = sample().run()
    for artifact in artifacts.values():
        facts = {**artifact.facts, "energy": {"joules": 720.0, "method": "RAPL"}}
        (artifact.path / "facts.json").write_text(json.dumps(facts))
    cost = gather(record, artifacts)["cost"]
    assert (cost["joules"], cost["energy_method"]) == (720.0 * len(artifacts), "RAPL")


def test_a_broken_log_is_named_by_line(sample):
    record, artifacts = sample().run()
    log = artifacts["train"].payload / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2}\n{"step": 2}\n')
    with pytest.raises(HermitcrabError, match=r"log\.jsonl: line 2 is no log entry"):
        gather(record, artifacts)
