"""What holds for every task, ours and those that an entry point brings, without anyone writing it: `samples/` has its rows."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from tasks.samples import Sample
from tiny import crab

from hermitcrab.errors import UsageError
from hermitcrab.evaluate import metrics
from hermitcrab.evaluate.baselines import BASELINES
from hermitcrab.pipeline import find_run
from hermitcrab.recipe import load
from hermitcrab.serve.opening import open_model
from hermitcrab.serve.predict import Reference
from hermitcrab.store import Store, read_json, write_json
from hermitcrab.tasks import TASKS, known, load_task
from hermitcrab.train.adapters import learnt
from hermitcrab.train.checkpoint import found
from hermitcrab.train.session import Session, launch

PLUGIN = Path(__file__).parent / "plugin"
EVERY = [*TASKS, "toy-regression"]


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy task, as an installed distribution is found: by its metadata on the path."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(params=EVERY)
def sample(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return sample_of(request.param, tmp_path)


def sample_of(task: str, folder: Path) -> Sample:
    return importlib.import_module(f"tasks.samples.{task.replace('-', '_')}").sample(folder)


def refused(capsys: Any, *arguments: str) -> str:
    """The one sentence with which a command stops."""
    status, out, err = crab(*arguments, capsys=capsys)
    told = [line for line in err.splitlines() if line.startswith("crab: ")]
    assert status in (1, 2), err
    assert (out, len(told)) == ("", 1), err
    assert "Traceback" not in err
    return told[0]


def test_the_task_from_outside_is_known_by_its_entry_point_and_short():
    assert known()["toy-regression"] == "toy_task:Plane"
    lines = (PLUGIN / "toy_task.py").read_text().split("class Plane")[1].splitlines()
    assert len([line for line in lines if line.strip()]) <= 40
    with pytest.raises(UsageError, match="did you mean `toy-regression`"):
        load_task("toy-regresion")


@pytest.mark.parametrize("name", EVERY)
def test_what_a_task_names_is_there(name):
    task = load_task(name)
    assert task.metrics
    for metric in task.metrics:
        assert metrics.find(metric).name == metric
        assert sum(other.name == metric for other in [*metrics.METRICS.values(), *task.own_metrics]) == 1
    assert set(task.baselines) <= {*BASELINES, *task.own_baselines}
    assert all(hasattr(task, part) for part in protocol_parts())


def protocol_parts() -> list[str]:
    from hermitcrab.tasks import Task

    optional = {"decisions", "cost", "start"}  # of what can be distilled; of an instance
    return [part for part in {*vars(Task), *Task.__annotations__} if not part.startswith("_") and part not in optional]


def test_a_bad_row_stops_with_its_place(sample, capsys):
    sample.make_bad()
    assert sample.file.split(".")[0].split("-")[0] in refused(capsys, "run", "r.yaml")


@pytest.mark.parametrize("how", ["single", "empty"])
def test_one_row_or_none_is_refused(sample, capsys, how):
    getattr(sample, f"make_{how}")()
    assert refused(capsys, "run", "r.yaml")


def test_a_class_that_no_training_row_has_is_refused_before_the_training(sample, capsys):
    if sample.unseen is None:
        pytest.skip("this task has no classes")
    sample.unseen()
    refused(capsys, "run", "r.yaml")
    assert not [path for path in Path(".crab/store/artifacts").rglob("training.json")]


def test_nan_in_a_feature_is_learnt_from_or_refused_by_its_name(sample, capsys):
    if sample.nan is None:
        pytest.skip("this task has no numbers among its inputs")
    sample.nan()
    if sample.survives:
        status, _, err = crab("run", "r.yaml", capsys=capsys)
        assert status == 0, err
    else:
        assert refused(capsys, "run", "r.yaml")


def test_from_rows_to_a_package_that_verifies_and_answers_as_was_measured(sample, capsys):
    status, _, err = crab("run", "r.yaml", "--json", capsys=capsys)
    assert status == 0, err
    status, _, err = crab("verify", "runs/sample/package", capsys=capsys)
    assert status == 0, err
    _, artifacts = find_run("sample", Store(".crab/store"))
    measured = pq.read_table(artifacts["evaluate"].payload / "predictions" / "derived.parquet")
    if sample.label is not None:
        assert sample.label in measured["reference"].to_pylist()
    rows = pq.read_table(artifacts["prepare"].payload / "test.parquet")
    model = Reference(open_model("runs/sample/package", Store(".crab/store")))
    again = model.task.predict(model.model, rows, load("r.yaml").evaluate)
    assert again.to_pydict() == measured.to_pydict()
    assert read_json(Path("runs/sample/package/metrics.json"))
    assert (Path("runs/sample") / "report.html").stat().st_size > 1000


def session(folder: Path, artifacts: Any, recipe: Any) -> Session:
    """The training of a run once more, in a folder of its own."""
    base = artifacts["collect"].read("base.json")
    place = Path(recipe.base.path) if recipe.base.path != "scratch" else Path(recipe.base.tokenizer or "")
    folder.mkdir()
    part = {**recipe.train.model_dump(mode="json"), "checkpoint_every": 3, "precision": "float32", "compile": "off"}
    write_json(folder / "job.json", {"task": recipe.task, "part": part, "base": base, "path": str(place.absolute()),
               "rows": str(artifacts["prepare"].payload.absolute()), "seed": 7})  # fmt: skip
    return Session.open(folder)


def trained(
    made: Session, processes: int = 1, mark: Any = lambda: None
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Every tensor of the trained model, and what it says of the probes."""
    plan, model = made.plan(processes)
    if processes > 1:
        launch(made.folder, processes)
    model = made.ready(model, plan)
    made.fit(model, plan, mark)
    tensors = {name: tensor.clone() for name, tensor in {**learnt(model), **dict(model.named_buffers())}.items()}
    return tensors, made.task.probe_outputs(model, made.task.probes())


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Rows of each task as its run prepared them, made once."""
    from tiny import working_in

    from hermitcrab.cli import main

    made: dict[str, tuple[Path, Any, Any]] = {}

    def get(task: str) -> tuple[Path, Any, Any]:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            with working_in(folder):
                sample_of(task, folder)
                assert main(["run", "r.yaml"]) == 0
                recipe = load("r.yaml")
            made[task] = folder, find_run("sample", Store(folder / ".crab/store"))[1], recipe
        return made[task]

    return get


@pytest.mark.parametrize("task", EVERY)
def test_killed_behind_a_checkpoint_and_resumed_is_bit_identical(task, prepared, tmp_path, monkeypatch):
    folder, artifacts, recipe = prepared(task)
    monkeypatch.chdir(folder)
    calm, _ = trained(session(tmp_path / "calm", artifacts, recipe))

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        trained(session(tmp_path / "killed", artifacts, recipe), mark=kill)
    assert len(found(tmp_path / "killed" / "checkpoints")) == 1
    resumed, _ = trained(Session.open(tmp_path / "killed"))
    assert calm.keys() == resumed.keys()
    assert all(torch.equal(calm[name], resumed[name]) for name in calm)


@pytest.mark.slow
@pytest.mark.parametrize("task", EVERY)
def test_two_processes_agree_with_one(task, prepared, tmp_path, monkeypatch, capsys):
    folder, artifacts, recipe = prepared(task)
    monkeypatch.chdir(folder)
    if load_task(task).why_not_split:
        assert load_task(task).why_not_split in refused(capsys, "run", "r.yaml", "cluster.processes=2")
        return
    # What they say, not each weight: Adam makes whole steps of the rounding in a gradient that is zero (a key's bias, in attention).
    _, one = trained(session(tmp_path / "one", artifacts, recipe))
    _, two = trained(session(tmp_path / "two", artifacts, recipe), 2)
    assert torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


@pytest.mark.parametrize("task", EVERY)
def test_predict_from_the_command_line_asks_what_the_task_reads(task, prepared, monkeypatch, capsys):
    folder, _, _ = prepared(task)
    capsys.readouterr()  # of the run, where this is the first test to ask for it
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    told = refused(capsys, "predict", "sample", "@no-such-file-of-rows")
    assert "no-such-file-of-rows" in told
    if not load_task(task).served:
        said = subprocess.run([sys.executable, "-m", "hermitcrab", "serve", "runs/sample/package", "--port", "0"],
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert said.returncode == 2, said.stderr
        assert "`crab predict` answers" in said.stderr


def test_the_toy_task_predicts_json_and_files(prepared, monkeypatch, capsys):
    folder, _, _ = prepared("toy-regression")
    monkeypatch.chdir(folder)
    status, out, err = crab("predict", "sample", '{"größe": 1.0, "b": 2.0}', "@rows.csv", "--json", capsys=capsys)
    assert status == 0, err
    answers = json.loads(out)["answers"]
    assert len(answers) == 121
    assert answers[0]["prediction"] == pytest.approx(2 * 1 - 2, abs=1)
    assert "expected a JSON object or list" in refused(capsys, "predict", "sample", "{1}")
