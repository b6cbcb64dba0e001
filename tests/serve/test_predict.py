"""`crab predict` gives the answers that `evaluate` gave, and refuses what it cannot vouch for."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny import crab

from hermitcrab.pipeline import find_run
from hermitcrab.store import Store, read_json, write_json


def asked_of(project: Path, run: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The test rows of a run, and what the derived model was measured to answer, in the same order."""
    _, artifacts = find_run(run, Store(project / ".crab" / "store"))
    rows = pq.read_table(artifacts["prepare"].payload / "test.parquet").to_pylist()
    told = pq.read_table(artifacts["evaluate"].payload / "predictions" / "derived.parquet").to_pylist()
    by_id = {row["row_id"]: row for row in told}
    return rows, [by_id[row["row_id"]] for row in rows]


def test_answers_by_choice_are_those_that_were_measured(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    rows, measured = asked_of(project, "small")
    status, out, _ = crab("predict", "small", *(row["prompt"] for row in rows), "--json", capsys=capsys)
    told = json.loads(out)
    assert status == 0
    assert told["verified"] is True
    assert [a["prediction"] for a in told["answers"]] == [m["prediction"] for m in measured]
    assert [a["score"] for a in told["answers"]] == [m["score"] for m in measured]
    assert [list(a["scores"].values()) for a in told["answers"]] == [m["scores"] for m in measured]


def test_generated_answers_are_those_that_were_measured(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    rows, measured = asked_of(project, "speaks")
    lines = [json.dumps({"asked": row["prompt"]}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    status, out, _ = crab(
        "predict", "runs/speaks", f"@{tmp_path / 'rows.jsonl'}", "--column", "asked", "--json", capsys=capsys
    )
    answers = json.loads(out)["answers"]
    assert status == 0
    assert [a["prediction"] for a in answers] == [m["prediction"] for m in measured]
    assert len({a["prediction"] for a in answers}) > 1


def test_inputs_are_words_lines_and_columns(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    (tmp_path / "t.csv").write_text("day,state\n3,good\n4,bad\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("the weather is wet\n天气很好\n".encode())))
    status, out, _ = crab("predict", "runs/small/package", "the weather is good", "-", f"@{tmp_path / 't.csv'}", "--column",
                          "the weather is {state} at {day}", "--json", capsys=capsys)  # fmt: skip
    assert status == 0
    asked = [answer["input"] for answer in json.loads(out)["answers"]]
    assert asked == [
        "the weather is good",
        "the weather is wet",
        "天气很好",
        "the weather is good at 3",
        "the weather is bad at 4",
    ]
    status, out, _ = crab("predict", "run:small", "the weather is good", "the weather is bad", capsys=capsys)
    assert [line.split("\t")[0] in ("yes", "no") for line in out.splitlines()] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["smal", "a"], 2, "did you mean `small`?"),
        (["small", "@nothing.csv"], 2, "nothing.csv: no such file"),
        (["small", "@rows.csv", "--column", "promt"], 2, "did you mean `prompt`?"),
        (["small", " "], 2, "input 1: is empty"),
        (["small", "a", "--max-new-tokens", "0"], 2, "expected a number from 1. Received: 0"),
        (["base", "a"], 2, "is no package"),
        (["small", "good " * 2000], 1, "do not fit the model's 1,024 positions"),
    ],
)
def test_misuse_is_one_sentence(project, monkeypatch, capsys, arguments, status, said):
    monkeypatch.chdir(project)
    found, out, err = crab("predict", *arguments, capsys=capsys)
    assert found == status
    assert said in err
    assert out == ""


def test_a_bare_model_is_used_only_when_that_is_said_aloud(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    status, out, err = crab("predict", "base", "a", "--unverified", "--max-new-tokens", "3", "--json", capsys=capsys)
    assert status == 0
    assert "warning: base: is no package" in err
    assert json.loads(out)["verified"] is False


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "metrics.json", "model.sig"]
)
def test_a_tampered_package_is_refused(here, capsys, name):
    file = here / "runs" / "small" / "package" / name
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    for verb in (["predict", "small", "a"], ["serve", "small", "--port", "0"]):
        status, out, err = crab(*verb, capsys=capsys)
        assert status in (1, 3)
        assert name in err
        assert out == ""
        assert "Traceback" not in err


def test_a_tampered_package_can_be_used_aloud(here, capsys):
    (here / "runs" / "small" / "package" / "metrics.json").write_text("[]")
    status, out, err = crab("predict", "small", "a", "--unverified", "--json", capsys=capsys)
    assert status == 0
    assert "warning" in err
    assert "metrics.json" in err
    assert json.loads(out)["verified"] is False


def test_another_signer_is_refused(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert crab("keygen", "--out", str(tmp_path / "other.pem"), capsys=capsys)[0] == 0
    status, _, err = crab("predict", "small", "a", "--key", str(tmp_path / "other.pub.pem"), capsys=capsys)
    assert status == 1
    assert "wrong key" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"task": "depth-estimation"},
            "its task is 'depth-estimation'; this version knows fill-mask, image-classification, recommendation",
        ),
        ({"task": "image-classification"}, "`fitted` is not what image-classification fits"),
        ({"fitted": ["a"]}, "expected `fitted`, a mapping"),
        ({"name": 3}, "expected `name`, a text"),
        ({"choices": "yes"}, "expected `choices`, a list of texts"),
        ({"template_digest": "sha256:0"}, "its chat template is not the one that it was trained with"),
    ],
)
def test_a_strange_record_is_told(here, capsys, change, said):
    file = here / "runs" / "small" / "package" / "hermitcrab.json"
    write_json(file, {**read_json(file), **change})
    status, _, err = crab("predict", "small", "a", "--unverified", capsys=capsys)
    assert status == 1
    assert said in err


def test_prompts_are_rendered_as_in_training(project, monkeypatch):
    """The same tokens as the training examples begin with, with the base's template and without."""
    from hermitcrab.recipe import Train
    from hermitcrab.serve.opening import open_model
    from hermitcrab.tasks import Start, make_task

    monkeypatch.chdir(project)
    store = Store(".crab/store")
    _, artifacts = find_run("small", store)
    rows = pq.read_table(artifacts["prepare"].payload / "train.parquet")
    task = make_task("text-generation", Start(artifacts["collect"].read("base.json"), project / "base"), Train())
    encoder = open_model("small", store).encoder
    for row, document in zip(rows.to_pylist(), task.documents(rows), strict=True):
        prompt = encoder.prompt([{"role": "user", "content": row["prompt"]}])
        assert document.ids[: len(prompt)].tolist() == prompt
        assert document.learn.tolist()[: len(prompt) + 1] == [False] * len(prompt) + [True]


def test_a_run_without_template_is_asked_without_one(here, capsys):
    short = [
        "train.steps=2",
        "train.template=none",
        "evaluate.few_shot=0",
        "evaluate.calibrate=false",
        "evaluate.baselines=[]",
    ]
    assert crab("run", "small.yaml", "name=bare", *short, capsys=capsys)[0] == 0
    rows, measured = asked_of(here, "bare")
    _, out, _ = crab("predict", "bare", *(row["prompt"] for row in rows), "--json", capsys=capsys)
    assert [a["score"] for a in json.loads(out)["answers"]] == [m["score"] for m in measured]
    shutil.rmtree(here / "runs" / "bare" / "package")
    status, _, err = crab("predict", "bare", "a", capsys=capsys)
    assert status == 1
    assert "has no package" in err
