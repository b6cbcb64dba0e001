from pathlib import Path

import pytest

from hermitcrab.environment import doctor
from hermitcrab.lineage.verify import Check, Verification
from hermitcrab.report.gather import gather
from hermitcrab.report.terminal import render, render_doctor, render_package, render_plan, render_verification


def test_a_run_is_told_in_a_screen(sample, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    facts = gather(*sample().run())
    text = render(facts)
    lines = text.splitlines()
    assert len(lines) <= 46
    assert max(map(len, lines)) <= 100
    flat = " ".join(text.split())
    assert facts["value"]["sentence"] in flat
    for row in facts["value"]["models"]:
        assert f"{row['figures']['accuracy']['value']:.3f}" in text
    for word in (
        "Some Base 135M",
        "LoRA rank 16",
        "12 duplicate",
        "no readable energy counter",
        "crab verify",
        "report.html",
    ):
        assert word in flat


@pytest.mark.parametrize("stages", [[], ["collect"], ["collect", "prepare", "train"]])
def test_a_run_in_the_making_is_told_as_far_as_it_got(sample, stages):
    made = sample()
    for stage in stages:
        getattr(made, stage)()
    text = render(gather(made.record(), made.artifacts))
    assert ("Some Base 135M" in text) == bool(stages)
    assert ("LoRA" in text) == ("train" in stages)


def test_compressed_models_are_told_with_size_and_distance(sample):
    line = next(line for line in render(gather(*sample().run())).splitlines() if line.startswith("gguf Q4_0"))
    assert line.split()[2:] == [
        "90.0", "MiB", "-0.005", "(-0.020", "to", "+0.010)", "not", "shown", "8", "of", "400", "(+3", "/",
        "−5)", "0.012", "97.5%", "–",
    ]  # fmt: skip


def test_classes_are_told_in_eighty_columns(from_scratch, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = render(gather(*from_scratch().run()))
    lines = text.splitlines()
    assert max(len(line) for line in lines if "sha256:" not in line) <= 80
    found = [line.split() for line in lines if line.startswith("Ankle boot")]
    assert [len(row) for row in found] == [12, 9]  # the matrix, and the figures with their intervals
    assert "nothing; initial weights drawn from a committed seed" in " ".join(text.split())
    assert "█" in text


def test_escape_sequences_and_markup_of_files_reach_no_terminal(sample):
    text = render(gather(*sample(uri="[bold red]x[/]\x1b]0;owned\x07.gguf").run()))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold red]x[/]\\u001b]0;owned\\u0007.gguf" in text


def test_a_plan_says_what_would_run_and_what_it_needs():
    needs = {"seconds": 372.0, "memory": 3 * 2.0**30, "disk": 2.0**20}
    text = render_plan([
        {"stage": "collect", "action": "reuse", "digest": "sha256:00", "needs": {}},
        {"stage": "train", "action": "run", "key": "sha256:11", "needs": needs},
        {"stage": "package", "action": "run", "why": "after evaluate", "needs": {}},
    ])  # fmt: skip
    lines = text.splitlines()
    assert lines[2].split() == ["train", "run", "about", "6", "min", "12", "s", "3.0", "GiB", "1.0", "MiB"]
    assert lines[3].split() == ["package", "run", "after", "evaluate"]


def test_a_package_is_told_as_its_own_claim():
    base = {"name": "Some\x1b Base", "license": "MIT", "uri": "model.gguf", "digest": "sha256:22"}
    package = {"name": "demo", "task": "text-generation", "architecture": "A", "license": "MIT", "base": base,
               "compressed": [{"file": "gguf/demo-Q8_0.gguf", "size": 2**20}],
               "data": [{"uri": "a.csv", "split": "train", "license": "CC0-1.0"}]}  # fmt: skip
    text = render_package(Path("package"), package)
    assert "Some\\u001b Base (MIT)" in text
    assert "gguf/demo-Q8_0.gguf (1.0 MiB)" in text
    assert "a.csv (train, CC0-1.0)" in text
    assert "crab verify package" in text


def test_a_failed_verification_shows_the_failures_alone():
    good, bad = (
        Check("digest", True, "config.json", "config.json is as signed"),
        Check("digest", False, "m", "m differs"),
    )
    assert "ok    config.json is as signed" in render_verification(Verification([good], signer="sha256:aa"))
    text = render_verification(Verification([good, bad]))
    assert "FAIL  m differs" in text
    assert "config.json" not in text
    assert text.endswith("not verified: 1 of 2 checks failed")


def test_doctor_names_versions_and_what_is_wrong(tmp_path):
    found = doctor(tmp_path)
    text = render_doctor(found)
    assert found["packages"]["numpy"] in text
    assert all(problem.split()[0] in text for problem in found["problems"])
    broken = {**found, "problems": ["the disk is full"], "extras": {"hub": {"packages": {"huggingface-hub": None}}}}
    assert "- the disk is full" in render_doctor(broken)
    assert "missing huggingface-hub: pip install 'hermitcrab[hub]'" in render_doctor(broken)
