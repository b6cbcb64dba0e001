"""The second task through every stage: no stage, loop, store or report knows that it is another."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from PIL import Image
from tiny import crab, stripes, working_in, write_image_project

import hermitcrab
from hermitcrab.cli import main
from hermitcrab.comparing import How, read_on
from hermitcrab.pipeline import ORDER, find_run
from hermitcrab.store import Store, read_json, write_json
from hermitcrab.tasks import TASKS


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_image_project(folder)
    with working_in(folder):
        assert main(["run", "shapes.yaml"]) == 0
    return folder


def test_images_are_learnt_compared_packaged_and_verified(here, capsys):
    status, out, _ = crab("run", "shapes.yaml", "--json", capsys=capsys)
    told = json.loads(out)
    assert (status, told["reused"]) == (0, list(ORDER))
    package = here / "runs" / "shapes" / "package"
    metrics = {(m["model"], m["name"]): m for m in read_json(package / "metrics.json")}
    assert metrics["derived", "accuracy"]["value"] > 0.9
    comparison = read_json(package / "comparison.json")
    assert comparison["verdict"] == "better"
    assert "against majority" in comparison["sentence"]
    assert "on the same rows" in comparison["sentence"]
    status, out, _ = crab("verify", str(package), "--json", capsys=capsys)
    assert status == 0, out
    record = read_json(package / "hermitcrab.json")
    assert record["fitted"]["labels"] == ["diagonal/\\", "flach", "垂直"]
    assert "template_digest" not in record


def test_the_confusion_matrix_is_that_of_the_answers(here):
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    _, artifacts = find_run("shapes", Store(".crab/store"))
    classes = artifacts["evaluate"].read("classes.json")
    for model, told in classes["models"].items():
        rows = pq.read_table(artifacts["evaluate"].payload / "predictions" / f"{model}.parquet").to_pylist()
        truth, said = [r["reference"] for r in rows], [r["prediction"] for r in rows]
        assert told["confusion"] == confusion_matrix(truth, said, labels=classes["labels"]).tolist()
        oracle = precision_recall_fscore_support(truth, said, labels=classes["labels"], zero_division=0)
        for i, entry in enumerate(told["per_class"]):
            if entry["precision"]["value"] is not None:  # of a class that was never said there is none
                assert entry["precision"]["value"] == pytest.approx(oracle[0][i])
            assert entry["recall"]["value"] == pytest.approx(oracle[1][i])
            assert entry["f1"]["value"] == pytest.approx(oracle[2][i])
            assert entry["support"] == oracle[3][i]
        assert told["unparsed"] == [0, 0, 0]


def test_predict_gives_the_answers_that_were_measured(here, capsys, monkeypatch):
    _, artifacts = find_run("shapes", Store(".crab/store"))
    rows = pq.read_table(artifacts["prepare"].payload / "test.parquet").to_pylist()
    told = pq.read_table(artifacts["evaluate"].payload / "predictions" / "derived.parquet").to_pylist()
    measured = {r["row_id"]: r for r in told}
    (here / "asked").mkdir()
    for row in rows:
        (here / "asked" / f"{row['row_id']}.png").write_bytes(row["image"])
    status, out, _ = crab("predict", "shapes", "asked", "--json", capsys=capsys)
    answers = {Path(a["input"]).stem: a for a in json.loads(out)["answers"]}
    assert status == 0
    assert answers.keys() == measured.keys()
    for name, answer in answers.items():
        assert answer["prediction"] == measured[name]["prediction"]
        assert list(answer["scores"].values()) == pytest.approx(measured[name]["scores"], abs=1e-5)
        assert answer["changed"] == []
    wide = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(stripes(1, 5)[0][0], 4, 0), 4, 1)).convert("RGB").save(wide, "JPEG")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(wide))
    wide.seek(0)
    status, out, _ = crab("predict", "shapes", "-", "@train-images", "--json", capsys=capsys)
    answers = json.loads(out)["answers"]
    assert (status, len(answers)) == (0, 301)
    assert answers[0]["changed"] == ["color to grey", "resized from 32 x 32"]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["predict", "shapes", "nowhere.png"], 2, "nowhere.png: no such file"),
        (["predict", "shapes", "shapes.yaml"], 1, "shapes.yaml: is no image that can be read"),
        (["predict", "shapes", "runs"], 2, "runs: has no images"),
        (["predict", "shapes", "@none"], 2, "@none: holds no image"),
        (["predict", "shapes", "@train-labels"], 1, "train-labels: is no IDX file of this kind"),
        (["run", "shapes.yaml", "base.architecture.hidden_sizes=[-1]"], 1, "hidden_sizes: expected a list of widths"),
        (["run", "shapes.yaml", "base.tokenizer=x"], 2, "base.tokenizer: image-classification reads no text"),
        (["run", "shapes.yaml", f"base.sha256={'f' * 64}"], 2, "base.sha256: there is no file that could have it"),
        (["run", "shapes.yaml", "data.split.test=0"], 1, "no test row is left"),
    ],
)
def test_misuse_is_one_sentence(here, capsys, arguments, status, told):
    (here / "none").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8]))
    found, _, err = crab(*arguments, capsys=capsys)
    assert found == status, err
    assert told in err
    assert "Traceback" not in err


def test_labels_that_are_missing_or_of_another_file_are_refused(here, capsys):
    raw = (here / "train-labels").read_bytes()
    (here / "train-labels").write_bytes(raw[:-1] + b"\x07")
    status, _, err = crab("run", "shapes.yaml", capsys=capsys)
    assert status == 1
    assert "column `label`: received '7', expected one of: 0, 1, 2" in err
    (here / "train-labels").write_bytes(raw)
    text = (here / "shapes.yaml").read_text()
    (here / "shapes.yaml").write_text(text.replace("labels: train-labels,", ""))
    status, _, err = crab("run", "shapes.yaml", capsys=capsys)
    assert status == 2
    assert "type `idx` needs `labels`" in err


@pytest.mark.parametrize("settings", [
    ["train.loss=mse", "base.architecture.activation=sigmoid", "train.optimizer=sgd", "train.momentum=0.9", "train.learning_rate=1.0",
     "train.steps=2000"],
    ["train.optimizer=sgd", "train.learning_rate=0.3", "train.final_dtype=bfloat16"],
    ["train.optimizer=adamw", "train.weight_decay=0.01", "train.batch_size=8", "train.accumulate=2"],
])  # fmt: skip
def test_losses_activations_and_optimizers_can_be_chosen(here, capsys, settings):
    status, _, err = crab("run", "shapes.yaml", "name=other", *settings, capsys=capsys)
    assert status == 0, err
    metrics = read_json(here / "runs" / "other" / "package" / "metrics.json")
    assert next(m["value"] for m in metrics if m["model"] == "derived" and m["name"] == "accuracy") > 0.8


def test_an_earlier_run_goes_on_as_a_base(here, capsys):
    text = (here / "shapes.yaml").read_text().replace("name: shapes", "name: further")
    lines = [line if not line.startswith("base:") else "base: {path: 'run:shapes'}" for line in text.splitlines()]
    (here / "further.yaml").write_text("\n".join(lines).replace("against: majority", "against: base") + "\n")
    status, _, err = crab("run", "further.yaml", "train.learning_rate=1e-4", capsys=capsys)
    assert status == 0, err
    record = read_json(here / "runs" / "further" / "package" / "hermitcrab.json")
    assert record["base"]["uri"] == "run:shapes/package"
    assert main(["verify", "runs/further/package"]) == 0


def test_settings_are_searched_and_two_models_compared_as_for_any_task(here, capsys):
    status, out, err = crab("run", "shapes.yaml", "name=searched", "tune.train.learning_rate=[1e-6, 1e-2]", "tune.metric=accuracy",
                            "--json", capsys=capsys)  # fmt: skip
    assert status == 0, err
    _, made = find_run("searched", Store(".crab/store"))
    slow, fast = made["tune"].read("trials.json")
    assert fast["chosen"]
    assert fast["value"] > slow["value"]
    assert slow["n"] == pq.read_metadata(made["prepare"].payload / "validation.parquet").num_rows
    assert crab("verify", "runs/searched/package", capsys=capsys)[0] == 0
    status, out, err = crab("compare", "shapes", "searched", "--on", "run:shapes/prepare", "--json", capsys=capsys)
    assert status == 0, err
    told = json.loads(out)
    measured = {m["name"]: m["value"] for m in find_run("shapes", Store(".crab/store"))[1]["evaluate"].read("metrics.json")
                if m["model"] == "derived"}  # fmt: skip
    assert {m["name"]: m["value"] for m in told["metrics"] if m["model"] == "base"} == measured
    assert "on the same rows" in told["sentence"]


def bare(here: Path) -> Path:
    """The model of the run without its record, as another library would leave it."""
    (here / "bare").mkdir()
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        shutil.copy(here / "runs/shapes/package" / name, here / "bare" / name)
    return here / "bare"


def test_a_bare_classifier_is_compared_and_asked_as_the_package_it_came_from(here, capsys):
    bare(here)
    status, out, err = crab("compare", "bare", "shapes", "--on", "run:shapes/prepare", "--json", capsys=capsys)
    assert status == 0, err
    told = json.loads(out)
    assert told["verdict"] == "tied"
    assert told["models"]["base"]["verified"] is None
    assert told["choices"] == ["diagonal/\\", "flach", "垂直"]
    assert crab("predict", "bare", "@train-images", capsys=capsys)[0] == 2
    status, out, err = crab("predict", "bare", "@train-images", "--unverified", "--json", capsys=capsys)
    assert status == 0, err
    answers = json.loads(crab("predict", "shapes", "@train-images", "--json", capsys=capsys)[1])["answers"]
    assert json.loads(out)["answers"] == answers


FILES = ["train-images", "--labels", "train-labels", "--type", "idx", "--format", "image-label"]


def test_models_are_compared_on_a_file_of_images_whose_rows_are_named_as_in_a_run(here, capsys):
    config = read_json(bare(here) / "config.json")
    write_json(
        here / "bare/config.json", {**config, "id2label": {"0": "2", "1": "0", "2": "1"}}
    )  # as the file has them
    status, out, err = crab("compare", "bare", "bare", "--on", *FILES, "--json", capsys=capsys)
    assert status == 0, err
    told = json.loads(out)
    assert (told["verdict"], told["n"]) == ("tied", 300)
    assert next(m["value"] for m in told["metrics"] if m["name"] == "accuracy") > 0.9
    again = hermitcrab.compare("bare", "bare", "train-images", labels="train-labels", type="idx", format="image-label")
    assert again.told == told
    rows, about = read_on(
        "train-images", Store(".crab/store"), How(format="image-label", type="idx", labels="train-labels")
    )
    collected = pq.read_table(find_run("shapes", Store(".crab/store"))[1]["collect"].payload / "train.parquet")
    assert rows["row_id"].to_pylist() == sorted(collected["row_id"].to_pylist())
    (here / "train-labels").write_bytes((here / "train-labels").read_bytes()[:-1] + b"\x01")
    _, other = read_on(
        "train-images", Store(".crab/store"), How(format="image-label", type="idx", labels="train-labels")
    )
    assert other["digest"] != about["digest"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (FILES, "references ['0', '1', '2'] (of 3) are none of the labels of the models. Expected: ['diagonal/"),
        (["run:shapes/prepare", "--choices", "flach,垂直"], "--choices: means nothing to image-classification"),
        (["run:shapes/prepare", "--max-new-tokens", "3"], "--max-new-tokens: means nothing to image-classification"),
        (["run:shapes/prepare", "--type", "idx"], "--labels and --type are for a file of rows"),
        (["run:shapes/prepare", "--labels", "train-labels"], "--labels and --type are for a file of rows"),
        (["train-images", "--type", "idx", "--format", "image-label"], "type `idx` needs `labels`"),
        (["train-images", "--type", "idxs"], "no type of file is named `idxs`; did you mean `idx`?"),
        ([*FILES[:2], "train-label", *FILES[3:]], "train-label: no such file or folder; did you mean `train-labels`?"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(here, capsys, arguments, said):
    status, out, err = crab("compare", "shapes", "shapes", "--on", *arguments, capsys=capsys)
    assert (status, out) == (2, "")
    assert said in err
    assert len([line for line in err.splitlines() if line.startswith("crab: ")]) == 1


@pytest.mark.parametrize(
    ("file", "key", "value", "told"),
    [
        ("preprocessor_config.json", "size", {"shortest_edge": 8}, "holds weights, but no model of a task"),
        ("config.json", "id2label", None, "text-generation: a tokenizer.json beside the weights, or a GGUF file"),
        ("preprocessor_config.json", "do_center_crop", True, "do_center_crop: expected False"),
        ("preprocessor_config.json", "image_std", [0.0], "is not what image-classification fits"),
        ("config.json", "id2label", {"0": "a", "2": "b"}, "is not what image-classification fits"),
    ],
)
def test_a_bare_model_that_cannot_be_asked_is_one_sentence(here, capsys, file, key, value, told):
    folder = bare(here)
    write_json(folder / file, {**read_json(folder / file), key: value})
    status, _, err = crab("predict", "bare", "@train-images", "--unverified", capsys=capsys)
    assert status == 1
    assert told in err
    assert len([line for line in err.splitlines() if line.startswith("crab: ")]) == 1
    shutil.rmtree(folder)
    folder.mkdir()
    assert "holds no weights" in crab("predict", "bare", "x.png", "--unverified", capsys=capsys)[2]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tune.train.lora.rank=[2, 4]", "train.lora"),
        ("tune.train.loss=[cross-entropy, mse]", "losses cannot be compared"),
        ("tune.metric=perplexity", "tune.metric: image-classification has no metric `perplexity`"),
    ],
)
def test_a_search_that_means_nothing_to_the_task_is_refused(here, capsys, override, said):
    more = [] if override.startswith("tune.train") else ["tune.train.epochs=[1, 2]"]
    status, _, err = crab("run", "shapes.yaml", override, *more, capsys=capsys)
    assert status == 2
    assert said in err


def renamed(text: str, labels: str) -> str:
    """The recipe on the earlier run as its base, with other names for the classes."""
    lines = [line if not line.startswith("base:") else "base: {path: 'run:shapes'}" for line in text.splitlines()]
    joined = "\n".join(lines).replace("against: majority", "against: base").replace("name: shapes", "name: further")
    return (
        joined[: joined.index("values: {label:")]
        + f"values: {{label: {labels}}}}}\n"
        + joined[joined.index("  split:") :]
        + "\n"
    )


def test_a_base_keeps_the_order_of_its_labels_and_how_it_sees_an_image(here, capsys):
    """A base whose classes stand in another order than the alphabet's, as a model of anybody's may."""
    import torch
    from safetensors.torch import load_file, save_file

    package = here / "runs" / "shapes" / "package"
    folder = here / "turned"
    folder.mkdir()
    shutil.copy(package / "preprocessor_config.json", folder)
    config, weights = read_json(package / "config.json"), load_file(package / "model.safetensors")
    turned = [2, 0, 1]
    labels = [config["id2label"][str(i)] for i in turned]
    write_json(
        folder / "config.json",
        {**config, "id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}},
    )
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][torch.tensor(turned)].contiguous()
    save_file(weights, folder / "model.safetensors")
    text = renamed((here / "shapes.yaml").read_text(), '{"0": flach, "1": 垂直, "2": "diagonal/\\\\"}')
    (here / "further.yaml").write_text(text.replace("{path: 'run:shapes'}", "{path: turned, license: MIT}"))
    status, _, err = crab("run", "further.yaml", "train.steps=20", capsys=capsys)
    assert status == 0, err
    metrics = {
        (m["model"], m["name"]): m["value"] for m in read_json(here / "runs" / "further" / "package" / "metrics.json")
    }
    first = {(m["model"], m["name"]): m["value"] for m in read_json(package / "metrics.json")}
    assert metrics["base", "accuracy"] == first["derived", "accuracy"]


def test_a_base_that_knows_other_labels_is_refused(here, capsys):
    (here / "further.yaml").write_text(renamed((here / "shapes.yaml").read_text(), '{"0": a, "1": b, "2": c}'))
    status, _, err = crab("run", "further.yaml", capsys=capsys)
    assert status == 1
    assert "the base knows other labels than the training rows have: only it ['diagonal/" in err


def test_a_validation_loss_that_is_no_number_is_a_sentence_and_a_failed_trial(here, capsys):
    wild = ["name=wild", "train.optimizer=sgd", "train.steps=1", "train.warmup=0", "train.clip_norm=null"]
    status, _, err = crab("run", "shapes.yaml", *wild, "train.learning_rate=1e30", capsys=capsys)
    assert status == 1
    assert "the loss over the validation rows is" in err
    assert "Traceback" not in err
    status, _, err = crab("run", "shapes.yaml", *wild, "tune.train.learning_rate=[0.1, 1e30]", capsys=capsys)
    assert status == 0, err
    assert "this trial failed" in err


def start(folder: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hermitcrab", "run", "shapes.yaml", *settings, "--key", "key.pem"]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config")}
    return subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical_and_two_processes_agree_with_one(tmp_path):
    """Killed behind a checkpoint, by a signal that nothing can catch; then the same training in two processes."""
    found = {}
    for name in ("straight", "killed", "two"):
        folder = tmp_path / name
        write_image_project(folder)
        subprocess.run(
            [sys.executable, "-m", "hermitcrab", "keygen", "--out", "key.pem"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        settings = [
            "train.steps=3000",
            "train.checkpoint_every=200",
            *(["cluster.processes=2", "train.steps=40"] if name == "two" else []),
        ]
        process = start(folder, *settings)
        if name == "killed":
            drafts = folder / ".crab" / "store" / "drafts"
            while process.poll() is None and not list(drafts.glob("*/work/checkpoints/step-*")):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
            process = start(folder, *settings)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        found[name] = read_json(folder / "runs" / "shapes" / "run.json")["digests"]
    assert found["killed"] == found["straight"]
    one = tmp_path / "one"
    write_image_project(one)
    subprocess.run(
        [sys.executable, "-m", "hermitcrab", "keygen", "--out", "key.pem"], cwd=one, check=True, capture_output=True
    )
    process = start(one, "train.steps=40")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    from safetensors.numpy import load_file

    a, b = (load_file(tmp_path / n / "runs" / "shapes" / "package" / "model.safetensors") for n in ("one", "two"))
    assert all(np.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_no_module_outside_the_tasks_names_a_task():
    """What one task needs and another does not stands behind the protocol: no `if task ==` anywhere else, nor any other way to ask."""
    import hermitcrab

    root = Path(hermitcrab.__file__).parent
    named = []
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] == "tasks":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in TASKS:
                named.append(f"{file.relative_to(root)}: {node.value}")
    assert named == ["cli/making.py: text-generation"]  # the default of `crab init`
