"""Cut models and students through every stage of a run: packaged, verified, told, resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tiny import IMAGE_RECIPE, RECIPE, crab, working_in, write_image_project, write_project

from hermitcrab.cli import main
from hermitcrab.errors import HermitcrabError
from hermitcrab.pipeline import Run, find_run
from hermitcrab.recipe import load
from hermitcrab.store import Store, read_json
from hermitcrab.train.loop import Fit

IMAGES = """
compress:
  prune: {method: width, keep: 0.5, heal: {steps: 30, learning_rate: 1e-2, batch_size: 16, distill: true}}
  distill: {start: new, architecture: {hidden_sizes: [8]}, epochs: 8, learning_rate: 1e-2, batch_size: 16, alpha: 0.2}
package: {sign: false}
"""
TEXTS = """
compress:
  prune: {method: depth, keep: 0.5, heal: {steps: 12, learning_rate: 5e-3, batch_size: 2}}
  rows: 12
package: {sign: false}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_image_project(folder, IMAGE_RECIPE + IMAGES)
    with working_in(folder):
        assert main(["run", "shapes.yaml"]) == 0
    return folder


def test_every_form_is_packaged_measured_and_verified(here: Path, capsys: Any) -> None:
    package = here / "runs/shapes/package"
    entries = {f"{e['format']} {e['type']}": e for e in read_json(package / "hermitcrab.json")["compressed"]}
    assert list(entries) == ["prune width-0.5", "distill student"]
    for entry in entries.values():
        assert (package / entry["file"]).is_file()
        assert entry["parity"]["low"] <= entry["parity"]["difference"] <= entry["parity"]["high"]
        assert entry["parity"]["mean_kl"] < entry["parity"]["mean_kl_to_base"]
        assert entry["size"] < entry["size_of_model"] + 3000  # config and preprocessor lie beside the weights
    neurons = entries["prune width-0.5"]["method"]["neurons"]
    assert (neurons["kept"], neurons["of"], 0 < neurons["importance_lost"] < 0.5) == (12, 24, True)
    student = entries["distill student"]["method"]
    assert student["teacher"]["name"] == "shapes"
    assert student["learnt"]["teacher_asked"] == "once about every example"
    assert student["init_commitment"].startswith("sha256:")
    status, out, _ = crab("verify", str(package), "--json", capsys=capsys)
    assert status in (0, 1), out  # unsigned, as the recipe says
    assert not [c for c in json.loads(out)["checks"] if c.get("status") == "contradicted"]
    assert "distill student" in (here / "runs/shapes/report.html").read_text()
    assert "prune" in (package / "README.md").read_text()


def test_the_cut_model_loads_in_transformers_and_answers(here: Path, capsys: Any) -> None:
    from transformers import AutoModelForImageClassification

    from hermitcrab.models import architectures

    architectures.register("mlp")
    model = AutoModelForImageClassification.from_pretrained(here / "runs/shapes/package/prune/width-0.5")
    assert model.config.hidden_sizes == [8, 4]
    assert AutoModelForImageClassification.from_pretrained(
        here / "runs/shapes/package/distill/student"
    ).config.hidden_sizes == [8]


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [12, 45])
def test_a_run_killed_while_it_heals_or_distills_ends_in_the_same_digest(
    here: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    first = find_run("shapes", Store(".crab/store"))[1]["compress"]
    shutil.rmtree(first.path)
    step, seen = Fit._step, []

    def die(self: Fit, number: int, tell: bool) -> Any:
        seen.append(number)
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return step(self, number, tell)

    monkeypatch.setattr(Fit, "_step", die)
    run = Run(load("shapes.yaml"), Store(".crab/store"), Path("runs"))
    with pytest.raises(KeyboardInterrupt):
        run.execute()
    monkeypatch.setattr(Fit, "_step", step)
    again = Run(load("shapes.yaml"), Store(".crab/store"), Path("runs"))
    again.execute()
    assert again.artifacts["compress"].digest == first.digest


def test_depth_of_a_language_model_through_a_run(tmp_path: Path, capsys: Any) -> None:
    write_project(tmp_path, RECIPE + TEXTS)
    with working_in(tmp_path):
        assert main(["run", "small.yaml"]) == 0
        package = tmp_path / "runs/small/package"
        (entry,) = read_json(package / "hermitcrab.json")["compressed"]
        assert entry["file"] == "prune/depth-0.5/model.safetensors"
        assert entry["method"]["layers"] == {"kept": 1, "of": 2}
        assert entry["method"]["healed"]["steps"] == 12
        capsys.readouterr()
        status, out, _ = crab("trace", str(package / "prune/depth-0.5"), str(package), "--json", capsys=capsys)
    assert status == 0
    assert json.loads(out)["results"][0]["base"].endswith("package")


def test_depth_of_an_mlp_is_refused_before_training(here: Path, capsys: Any) -> None:
    recipe = load("shapes.yaml", ["compress.prune={method: depth}", "compress.distill=null", "train.steps=61"])
    with pytest.raises(HermitcrabError, match="mlp has no one list of layers that are alike"):
        Run(recipe, Store(".crab/store"), Path("runs")).execute()
    assert "train: running" not in capsys.readouterr().err
