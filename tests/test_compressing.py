"""`crab compress` on a finished run: forms measured, rejected by name, written as folders that verify; the package stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import RECIPE, write_project

from hermitcrab.compressing import Asked, Budget, choose, compress
from hermitcrab.digest import describe_files, tree_files
from hermitcrab.errors import UsageError
from hermitcrab.lineage.keys import keygen
from hermitcrab.lineage.verify import verify
from hermitcrab.pipeline import Run
from hermitcrab.recipe import load
from hermitcrab.store import Store

pytest.importorskip("torch")
pytest.importorskip("xllamacpp")


def entry(kind: str, size: int, kl: float, within: bool = True, speed: float = 100.0) -> dict:
    parity = {
        "metric": "accuracy",
        "difference": -0.01,
        "low": -0.03,
        "high": 0.01,
        "n": 50,
        "within_margin": within,
        "mean_kl": kl,
    }
    return {
        "format": "gguf",
        "type": kind,
        "size": size,
        "parity": parity,
        "speed": {"per_second": speed, "unit": "tokens"},
    }


def test_a_budget_says_what_speaks_against_a_form() -> None:
    budget = Budget(max_size=90, max_loss=0.02, min_speed=200)
    assert Budget().rejects(entry("Q8_0", 100, 0.1)) == []
    size, loss, speed = budget.rejects(entry("Q8_0", 100, 0.1, within=False))
    assert size.startswith("size 0.0 MB over")
    assert loss == "not shown to lose at most 0.02 of accuracy: -0.0100 (-0.0300 to +0.0100) on 50 rows"
    assert speed == "100.0 tokens a second under 200"


def test_with_a_loss_stated_the_smallest_is_chosen_else_the_nearest() -> None:
    forms = [entry("Q8_0", 100, 0.001), entry("Q4_0", 50, 0.1)]
    assert choose(forms, Budget(max_loss=0.02))["type"] == "Q4_0"
    assert choose(forms, Budget(max_size=1000))["type"] == "Q8_0"
    assert choose([], Budget()) is None


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    key = keygen(folder / "key.pem").private
    write_project(folder, RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Run(load("small.yaml"), Store(".crab/store"), Path("runs")).execute(key)
    return folder


def test_a_finished_run_is_compressed_without_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    package = project / "runs/small/package"
    before = describe_files(package, tree_files(package))
    forms = {"gguf": ["Q8_0", "Q4_0-calibrated"]}
    told = compress("runs/small", Path("out"), Store(".crab/store"), Asked(forms, sign=project / "key.pem"))
    assert told["written"] == ["gguf-Q8_0", "gguf-Q4_0-calibrated"]
    assert told["on"]["uri"].startswith("run:small")
    assert (told["metric"], told["suggested"]) == ("accuracy", "gguf Q8_0")
    assert describe_files(package, tree_files(package)) == before
    for folder in told["written"]:
        found = verify(Path("out") / folder, project / "key.pub.pem")
        assert found.ok, [check.message for check in found.failures]
        record = json.loads((Path("out") / folder / "hermitcrab.json").read_text())
        assert record["exported"]["package"]["digest"].startswith("sha256:")
        assert record["exported"]["parity"]["n"] == 24
    calibrated = told["candidates"][1]
    assert calibrated["method"]["calibration_rows"] == 64
    assert calibrated["speed"]["unit"] == "tokens"
    assert not list(project.glob(".out.part"))
    with pytest.raises(UsageError, match="is there already"):
        compress("runs/small", Path("out"), Store(".crab/store"), Asked(forms))


def test_what_no_form_can_keep_to_writes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    asked = Asked({"gguf": ["Q8_0"]}, suggest=True, budget=Budget(max_size=10))
    told = compress("small", Path("none"), Store(".crab/store"), asked)
    assert (told["written"], told["suggested"], told["folder"]) == ([], None, None)
    assert "over 0.0" in told["candidates"][0]["rejected"][0]
    assert not Path("none").exists()


@pytest.mark.parametrize(
    ("model", "asked", "says"),
    [
        ("runs/small/package", Asked({"gguf": ["Q9"]}), "--gguf: .*Received: Q9"),
        ("runs/small", Asked({"onnx": ["int8"]}), "--onnx: text-generation can be compressed to: gguf, openvino"),
        ("base", Asked({"gguf": ["Q8_0"]}), "is no run of this store"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, model: str, asked: Asked, says: str
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(UsageError, match=says):
        compress(model, Path("refused"), Store(".crab/store"), asked)


def test_a_stated_loss_is_the_margin_and_is_held_against_the_record(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    asked = Asked({"gguf": ["Q8_0", "Q5_0"]}, suggest=True, budget=Budget(max_loss=0.9), sign=project / "key.pem")
    told = compress("small", Path("stated"), Store(".crab/store"), asked)
    assert [e["parity"]["margin"] for e in told["candidates"]] == [0.9, 0.9]
    assert (told["suggested"], told["written"]) == ("gguf Q5_0", ["gguf-Q5_0"])  # the smallest that keeps to it
    record = json.loads(Path("stated/gguf-Q5_0/hermitcrab.json").read_text())["exported"]
    assert record["parity"]["tolerance"] == {"worst_loss": 0.9}
    assert "mixed" not in record["method"]
    assert verify("stated/gguf-Q5_0", project / "key.pub.pem").ok
