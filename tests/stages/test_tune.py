"""A search on validation rows: every trial in the store and in the record, the best one is what is evaluated and shipped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis.strategies import lists, none, one_of, sampled_from

pytest.importorskip("torch")

from tiny import RECIPE, write_project

from hermitcrab.cli import main
from hermitcrab.pipeline import ORDER, Run, find_run, stage_named
from hermitcrab.recipe import load
from hermitcrab.stages.tune import best_of
from hermitcrab.store import Store, read_json, write_json

# The last rate cannot be trained with: a trial that fails is told, and the search goes on.
SEARCH = RECIPE.replace("steps: 12", "steps: 4").replace("few_shot: 2, calibrate: true, baselines: [majority, tfidf-logreg]",
    "few_shot: 0") + "tune: {train.learning_rate: [1e-4, 5e-3, 1e30], train.lora.rank: [4]}\n"  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, SEARCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        assert main(["run", "small.yaml"]) == 0
    return folder


@pytest.fixture
def here(project, tmp_path, monkeypatch) -> Path:
    shutil.copytree(project, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "p" / "config"))
    monkeypatch.setenv("COLUMNS", "110")
    return tmp_path / "p"


def crab(*arguments: str, capsys: Any) -> tuple[int, str, str]:
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_best_setting_on_validation_rows_is_what_is_evaluated_and_shipped(project):
    _, made = find_run("small", Store(project / ".crab/store"))
    slow, good, wild = made["tune"].read("trials.json")
    assert [t["settings"]["train.learning_rate"] for t in (slow, good, wild)] == [1e-4, 5e-3, 1e30]
    assert good["value"] < slow["value"]  # the loss, and lower is better
    assert [t["chosen"] for t in (slow, good, wild)] == [False, True, False]
    assert wild["value"] is None
    assert "is nan" in wild["failed"] or "is inf" in wild["failed"]
    assert made["train"].digest == good["model"] != slow["model"]
    assert good["value"] == made["train"].read("training.json")["validation"][-1]["loss"]
    assert {t["split"] for t in (slow, good, wild)} == {"validation"}
    (ledger,) = made["tune"].read("ledger.json")
    assert (ledger["taken"], ledger["kept"], ledger["dropped"]) == (3, 2, {"training diverged": 1})
    recorded = read_json(project / "runs/small/run.json")["recipe"]
    assert recorded["train"]["learning_rate"] == 5e-3
    assert recorded["tune"]["train.learning_rate"] == [1e-4, 5e-3, 1e30]


def test_claims_record_card_report_and_terminal_tell_every_trial(here, capsys):
    package = here / "runs/small/package"
    _, made = find_run("small", Store(here / ".crab/store"))
    trials = made["tune"].read("trials.json")
    assert read_json(package / "hermitcrab.json")["trials"] == trials
    claims = (package / "claims.jsonl").read_bytes()
    assert len(claims.splitlines()) == len(ORDER)
    status, out, _ = crab("verify", "runs/small/package", "--json", capsys=capsys)
    assert status == 0
    assert "search" in {check["check"] for check in json.loads(out)["checks"]}
    told = {
        "card": (package / "README.md").read_text(),
        "page": (here / "runs/small/report.html").read_text(),
        "terminal": crab("show", "small", capsys=capsys)[1],
    }
    for text in told.values():
        for trial in trials:
            assert str(trial["settings"]["train.learning_rate"]) in text
        assert "diverged" in text
        assert "chosen" in text
    assert "3 settings were trained" in told["card"]
    shown = crab("show", "runs/small/package", capsys=capsys)[1]
    assert "3 settings by loss on 12 validation rows; chosen train.learning_rate 0.005, train.lora.rank 4" in shown


def test_a_trial_is_a_training_like_any_other_and_the_chosen_one_is_not_trained_again(here, capsys):
    status, _, err = crab("run", "small.yaml", "--json", capsys=capsys)
    assert status == 0
    assert "running" not in err
    alone = SEARCH[: SEARCH.index("tune:")].replace("name: small", "name: alone")
    (here / "alone.yaml").write_text(alone)
    status, out, err = crab("run", "alone.yaml", "train.learning_rate=1e-4", "--json", capsys=capsys)
    assert status == 0, err
    assert "train: reused" in err
    trials = find_run("small", Store(here / ".crab/store"))[1]["tune"].read("trials.json")
    assert json.loads(out)["digests"]["train"] == trials[0]["model"]


def test_another_value_is_one_more_training(here, capsys):
    plan = json.loads(
        crab("plan", "small.yaml", "tune.train.learning_rate=[1e-4, 5e-3, 2e-3]", "--json", capsys=capsys)[1]
    )
    rows = {row["stage"]: row for row in plan["stages"]}
    assert [trial["action"] for trial in rows["tune"]["trials"]] == ["reuse", "reuse", "run"]
    assert rows["tune"]["trials"][2]["needs"]["seconds"] > 0
    assert rows["tune"]["needs"]["seconds"] > rows["tune"]["trials"][2]["needs"]["seconds"]  # all that it could take
    assert rows["train"]["action"] == "reuse"
    status, out, _ = crab("plan", "small.yaml", "tune.train.learning_rate=[1e-4, 5e-3, 2e-3]", capsys=capsys)
    assert status == 0
    assert "train.learning_rate 0.002" in out
    status, _, err = crab("run", "small.yaml", "tune.train.learning_rate=[1e-4, 5e-3, 2e-3]", capsys=capsys)
    assert status == 0
    assert err.count("train: running") == 1
    assert err.count("train: reused") == 3  # two trials, and the chosen one at the end


def test_a_metric_of_answers_decides_on_validation_rows_and_test_rows_are_opened_once(here, capsys):
    status, _, err = crab("run", "small.yaml", "tune.metric=accuracy", capsys=capsys)
    assert status == 0, err
    store = Store(here / ".crab/store")
    _, made = find_run("small", store)
    trials = made["tune"].read("trials.json")
    held = {
        r["row_id"]: r["completion"] for r in pq.read_table(made["prepare"].payload / "validation.parquet").to_pylist()
    }
    asked = [t for t in made["tune"].facts["trials"] if t["stage"] == "validate"]
    assert len(asked) == 2
    for trial, reference in zip(trials[:2], asked, strict=True):
        answers = pq.read_table(store.find(reference["key"]).payload / "predictions/validation.parquet").to_pylist()
        assert {row["row_id"] for row in answers} == set(held)  # the validation rows and no other
        right = sum(row["prediction"] == held[row["row_id"]] for row in answers)
        assert trial["value"] == right / len(held)
        assert trial["low"] <= trial["value"] <= trial["high"]
        assert trial["prompt_digest"]
    assert err.count("evaluate: derived, test rows") == 1
    assert trials[0]["chosen"] == (trials[0]["value"] >= trials[1]["value"])  # of equals the first listed
    assert crab("verify", "runs/small/package", capsys=capsys)[0] == 0


def test_a_killed_search_goes_on_where_it_was_and_gives_the_same(here, capsys, monkeypatch):
    _, calm = find_run("small", Store(here / ".crab/store"))
    shutil.rmtree(here / ".crab/store")
    from hermitcrab.train.loop import Fit

    original, steps = Fit._step, []

    def die(self: Fit, step: int, tell: bool) -> Any:
        steps.append(step)
        if len(steps) == 7:  # the third step of the second trial; a checkpoint was made after the second
            raise KeyboardInterrupt
        return original(self, step, tell)

    monkeypatch.setattr(Fit, "_step", die)
    assert crab("run", "small.yaml", capsys=capsys)[0] == 1
    assert json.loads(crab("gc", "--json", capsys=capsys)[1])["removed"] == []  # what is in the making is left alone
    status, _, err = crab("run", "small.yaml", capsys=capsys)
    assert status == 0
    assert err.count("train: reused") == 2  # the first trial, and the chosen one at the end
    assert steps[7] == 2
    _, again = find_run("small", Store(here / ".crab/store"))
    assert {n: a.digest for n, a in again.items()} == {n: a.digest for n, a in calm.items()}
    assert again["tune"].facts["sessions"] == 2


def test_gc_keeps_the_trials_of_a_run_and_its_cost_counts_no_training_twice(here, capsys):
    assert all("drafts" in entry["path"] for entry in json.loads(crab("gc", "--json", capsys=capsys)[1])["removed"])
    store = Store(here / ".crab/store")
    _, made = find_run("small", store)
    first, second = (store.find(t["key"]) for t in made["tune"].facts["trials"])
    assert second.digest == made["train"].digest
    spent = made["tune"].facts["cpu_seconds"]
    assert first.facts["cpu_seconds"] <= spent  # and what the trial that failed took


def test_a_chosen_model_that_is_lost_and_comes_out_otherwise_stops(here, capsys):
    store = Store(here / ".crab/store")
    _, made = find_run("small", store)
    trials = made["tune"].read("trials.json")
    trials[1]["model"] = trials[0]["model"]  # as if training again had given other bytes
    write_json(made["tune"].payload / "trials.json", trials)
    status, _, err = crab("run", "small.yaml", "evaluate.seed=3", capsys=capsys)
    assert status == 1
    assert "training again gave another" in err


def test_without_a_search_the_stage_is_empty_and_the_same_for_every_recipe(here):
    (here / "alone.yaml").write_text(SEARCH[: SEARCH.index("tune:")].replace("name: small", "name: alone"))
    runs = [Run(load("alone.yaml", ["train.steps=2", *more]), Store(".crab/store"), Path("runs"))
            for more in ([], ["train.learning_rate=1e-4", "evaluate.seed=9"])]  # fmt: skip
    slices = [stage_named("tune").slice(run.recipe) for run in runs]
    assert slices[0] == slices[1]
    runs[0].execute()
    made = runs[0].artifacts["tune"]
    assert (made.read("trials.json"), made.read("ledger.json")) == ([], [])
    assert "Settings searched" not in (here / "runs/alone/report.html").read_text()
    assert "Settings searched" not in (here / "runs/alone/package/README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "status", "said"),
    [
        (["data.split.validation=0"], 2, "tune chooses on validation rows, and there are none"),
        (["data.split.validation=0.001"], 1, "none is left after cleaning"),
        (["tune.metric=acuracy"], 2, "tune.metric"),
        (["tune.metric=accuracy", "evaluate.choices=[]"], 2, "tune.metric: accuracy is not what this task gives here"),
        (["tune.train.learning_rate=[]"], 2, "expected a list of values to try"),
        (["tune.train.learning_rate=[1e-3, 0.001]"], 2, "0.001 is given twice"),
        (["tune.train.learning_rate=[1e-3]"], 2, "one setting"),
        (["tune.train.learning_rate=[1e-3, -1]"], 2, "should be greater than 0. Received: -1"),
        (["tune.train.leraning_rate=[1e-3, 2e-3]"], 2, "did you mean `train.learning_rate`?"),
        (["tune.data.split.seed=[1, 2]"], 2, "only keys of train are searched over"),
        (["tune.train.profile=[true, false]"], 2, "changes nothing of the result"),
        (["tune.train.truncate=[left, right]"], 2, "losses cannot be compared"),
        (["tune.train.patience=[1, 2]", "train.validate_every=0"], 2, "patience needs validate_every"),
        (["tune.trials=9"], 2, "asks for 9 settings; there are 3"),
        (["tune.train.learning_rate=[1e30, 1e31]"], 1, "none of 2 trials gave a loss"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_one_sentence(here, capsys, overrides, status, said):
    found, _, err = crab("run", "small.yaml", *overrides, capsys=capsys)
    assert found == status, err
    assert said in err
    assert len([line for line in err.splitlines() if line.startswith("crab: ")]) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("rates", "said"),
    [("[1e-4, 5e-3]", "none failed, and none has a figure of it"), ("[1e-4, 1e30]", "the first that failed: ")],
)
def test_a_search_without_any_figure_says_why(here, capsys, monkeypatch, rates, said):
    monkeypatch.setattr("hermitcrab.stages.tune.kept_loss", lambda told, best: None)
    status, _, err = crab("run", "small.yaml", f"tune.train.learning_rate={rates}", capsys=capsys)
    assert status == 1
    assert f"none of 2 trials gave a loss on 12 validation rows; {said}" in err


@given(
    lists(one_of(none(), sampled_from([0.25, 0.5, 0.75])), max_size=6), sampled_from(["loss", "accuracy", "perplexity"])
)
def test_the_best_is_the_first_of_those_with_the_best_figure(values, metric):
    best = best_of([{"value": value} for value in values], metric)
    known = [value for value in values if value is not None]
    wanted = (max if metric == "accuracy" else min)(known, default=None)
    assert best == (values.index(wanted) if known else None)


def test_a_draw_takes_so_many_settings_in_the_order_of_the_recipe(here):
    recipe = load(
        "small.yaml",
        ["tune.train.learning_rate=[1e-4, 2e-4, 3e-4, 4e-4]", "tune.train.lora.rank=[2, 4, 8]", "tune.trials=5"],
    )
    drawn = recipe.tune.settings()
    everything = load(
        "small.yaml", ["tune.train.learning_rate=[1e-4, 2e-4, 3e-4, 4e-4]", "tune.train.lora.rank=[2, 4, 8]"]
    ).tune.settings()
    assert len(drawn) == 5
    assert len(everything) == 12
    assert everything[:3] == [{"train.learning_rate": 1e-4, "train.lora.rank": rank} for rank in (2, 4, 8)]
    assert [s for s in everything if s in drawn] == drawn
    assert recipe.tune.settings() == drawn
