"""Every starter is a recipe that loads and runs as it is."""

from __future__ import annotations

import json

import pytest
from tiny import write_model

from hermitcrab.cli import main
from hermitcrab.recipe import load
from hermitcrab.starters import HERE
from hermitcrab.tasks import TASKS

TASKS_WITH_STARTERS = sorted(p.name for p in HERE.iterdir() if p.is_dir() and not p.name.startswith("_"))


def test_every_task_has_a_starter():
    assert sorted(TASKS) == TASKS_WITH_STARTERS


@pytest.mark.parametrize("task", TASKS_WITH_STARTERS)
def test_a_starter_runs_on_its_own_rows(task, tmp_path, monkeypatch, capsys):
    """With a tiny base in place of a real one; `crab show` reads the recipe as it is."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert main(["init", task]) == 0
    assert main(["show", "recipe.yaml"]) == 0
    tiny = []
    if load(tmp_path / "recipe.yaml").base.path != "scratch":
        write_model(tmp_path / "base")
        tiny = ["base.path=base", "base.sha256=null"]
    capsys.readouterr()
    status = main(["run", "recipe.yaml", *tiny, "train.steps=2", "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    told = json.loads(captured.out)
    assert told["name"].startswith("my-first-")
    assert main(["verify", told["package"]]) == 0


def test_nothing_is_overwritten_and_unknown_tasks_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "text-generation", "here", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 2
    (tmp_path / "here" / "recipe.yaml").write_text("mine")
    assert main(["init", "text-generation", "here"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "here" / "recipe.yaml").read_text() == "mine"
    assert main(["init", "text-generaton"]) == 2
    assert "did you mean `text-generation`?" in capsys.readouterr().err
