"""crab compare: any two models on any rows, with the figures that `evaluate` would give, and each asked in its own template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tiny import RECIPE, TEMPLATE, working_in, write_model, write_project

from hermitcrab.cli import main
from hermitcrab.pipeline import find_run
from hermitcrab.store import Store

SMALL = RECIPE.replace("few_shot: 2, calibrate: true, baselines: [majority, tfidf-logreg], noise_rows: 8, resamples: 200",
                       "noise_rows: 0") + "compress: {gguf: [Q8_0], rows: 8}\n"  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, SMALL)
    lines = [
        "question,answer",
        *(f"the weather is {w} at {i},{a}" for i in range(9) for w, a in (("warm", "yes"), ("wet", "no"))),
    ]
    (folder / "asked.csv").write_text("\n".join(lines) + "\n")
    texts = (f"the weather is {w}, and the answer is {a}." for w, a in (("good", "yes"), ("bad", "no"), ("odd", "no")))
    (folder / "plain.txt").write_text("\n\n".join(texts))
    with working_in(folder):
        assert main(["run", "small.yaml"]) == 0
    return folder


def compare(*arguments: str, capsys: Any) -> dict[str, Any]:
    assert main(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_on_the_test_rows_of_a_run_it_gives_what_evaluate_measured(here, capsys):
    _, made = find_run("small", Store(".crab/store"))
    measured = made["evaluate"].read("comparison.json")
    found = compare("base", "small", "--on", "run:small/prepare", capsys=capsys)
    for name in ("verdict", "metric", "n", "gained", "lost", "pairs"):
        assert found[name] == measured[name], name
    figures = {(m["model"], m["name"]): m for m in made["evaluate"].read("metrics.json")}
    assert len(found["metrics"]) == len(figures)
    for entry in found["metrics"]:
        assert entry == figures[entry["model"], entry["name"]]
    assert "under the same prompt" in found["sentence"]
    assert found["models"]["derived"]["verified"].startswith("intact")
    assert found["models"]["base"]["verified"] is None
    assert found["models"]["base"]["digest"] == made["collect"].read("base.json")["digest"]
    assert found["models"]["base"]["template_digest"] == found["models"]["derived"]["template_digest"]


def test_a_model_is_asked_the_same_rows_once_whatever_it_is_compared_with(here, capsys):
    assert main(["compare", "base", "runs/small/package", "--on", "asked.csv", "--column", "prompt=question",
                 "--column", "completion=answer"]) == 0  # fmt: skip
    first = capsys.readouterr()
    assert first.err.count("is asked 18 rows") == 2
    gguf = next((here / "runs/small/package/gguf").glob("*.gguf"))
    found = compare("small", str(gguf), "--on", "asked.csv", "--column", "prompt=question", "--column", "completion=answer",
                    "--metric", "accuracy", capsys=capsys)  # fmt: skip
    assert found["models"]["derived"]["name"] != found["models"]["base"]["name"]
    assert found["models"]["base"]["verified"]
    assert [pair["metric"] for pair in found["pairs"]] == ["accuracy"]
    (pair,) = found["pairs"]
    answers = {m["model"]: m["value"] for m in found["metrics"]}
    assert pair["difference"] == pytest.approx(answers["derived"] - answers["base"])
    assert (
        main(
            [
                "compare",
                "base",
                "small",
                "--on",
                "asked.csv",
                "--column",
                "prompt=question",
                "--column",
                "completion=answer",
            ]
        )
        == 0
    )
    assert capsys.readouterr().err.count("was asked before") == 2


def test_models_with_other_templates_are_asked_in_their_own_and_that_is_said(here, capsys):
    write_model(here / "other")
    file = here / "other" / "chat_template.jinja"
    file.write_text("Answer with one word.\n" + TEMPLATE)
    found = compare("base", "other", "--on", "run:small/prepare", "--choices", "yes,no", capsys=capsys)
    assert found["models"]["base"]["template_digest"] != found["models"]["derived"]["template_digest"]
    assert found["models"]["base"]["prompt_digest"] != found["models"]["derived"]["prompt_digest"]
    assert "each in its own template" in found["sentence"]
    same = compare("base", "base", "--on", "run:small/prepare", "--choices", "yes,no", capsys=capsys)
    assert (same["verdict"], same["gained"], same["lost"]) == ("tied", [], [])
    assert "every answer is the same" in same["sentence"]


def test_without_choices_answers_are_generated_and_texts_are_measured_by_likelihood(here, capsys):
    found = compare("base", "base", "--on", "asked.csv", "--column", "prompt=question", "--column", "completion=answer",
                    "--rows", "3", "--max-new-tokens", "2", capsys=capsys)  # fmt: skip
    assert (found["asked"], found["metric"], found["n"]) == ("generation", "exact_match", 3)
    found = compare("base", "small", "--on", "plain.txt", "--format", "text", capsys=capsys)
    assert (found["asked"], found["n"]) == ("likelihood", 3)
    assert {m["name"] for m in found["metrics"]} == {"perplexity", "bits_per_byte"}


def test_a_package_that_does_not_verify_stops_and_goes_on_only_unverified(here, capsys):
    file = here / "runs/small/package/README.md"
    file.write_text(file.read_text() + "changed")
    assert main(["compare", "base", "small", "--on", "run:small/prepare"]) == 1
    assert "README.md" in capsys.readouterr().err
    assert (
        main(
            [
                "compare",
                "base",
                "small",
                "--on",
                "run:small/prepare",
                "--rows",
                "4",
                "--unverified",
                "--report",
                "out.html",
            ]
        )
        == 0
    )
    told = capsys.readouterr()
    assert "because of --unverified" in told.err
    assert "no package: nothing vouches for it" in told.out
    page = (here / "out.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert "On the same rows" in page
    assert "no package: nothing vouches for it" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base", "samll", "--on", "run:small/prepare"], "no such folder, file or run; did you mean `small`?"),
        (["base", "small", "--on", "askd.csv"], "did you mean `asked.csv`?"),
        (["base", "small", "--on", "asked.csv"], "no column `prompt`"),
        (["base", "small", "--on", "asked.csv", "--column", "promt=question"], "did you mean `prompt`?"),
        (["base", "small", "--on", "asked.csv", "--column", "question"], "expected WANTED=COLUMN"),
        (["base", "small", "--on", "asked.csv", "--column", "prompt=question", "--column", "completion=question"],
         "are none of the choices"),
        (["base", "small", "--on", "run:small/train"], "expected run:small/prepare"),
        (["base", "small", "--on", "run:small/prepare", "--column", "prompt=x"], "have their columns already"),
        (["base", "small", "--on", "run:smal/prepare"], "there is no run `smal`"),
        (["base", "small", "--on", "run:small/prepare", "--metric", "acuracy"], "did you mean `accuracy`?"),
        (["base", "small", "--on", "run:small/prepare", "--choices", "yes"], "choices are at least two"),
        (["base", "small", "--on", "plain.txt", "--format", "txt"], "did you mean `text`?"),
        (["base", "small", "--on", "plain.txt", "--format", "text", "--choices", "a,b"], "ask nothing"),
        (["base", "small"], "required: --on"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_sentence(here, capsys, arguments, said):
    assert main(["compare", *arguments]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert len([line for line in told.err.splitlines() if line.startswith("crab: ")]) == 1
    assert told.out == ""
