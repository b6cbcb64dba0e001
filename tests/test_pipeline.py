"""A whole run on a real tiny model: reuse, misuse, and what others' tools say of the package."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")

from tiny import RECIPE, crab, question_rows, working_in, write_project

from hermitcrab import recipe as recipes
from hermitcrab.cli import main
from hermitcrab.pipeline import ORDER, Run, find_run
from hermitcrab.recipe import Part
from hermitcrab.store import Store, read_json


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A finished run, made once; tests that change something copy it."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, RECIPE + "compress: {gguf: [Q8_0], rows: 16}\n")
    with working_in(folder):
        assert main(["run", "small.yaml"]) == 0
    return folder


def test_a_second_run_reuses_every_stage_and_says_one_object(here, capsys):
    before = {p: p.stat().st_mtime_ns for p in (here / "runs" / "small" / "package").iterdir()}
    status, out, err = crab("run", "small.yaml", "--json", capsys=capsys)
    told = json.loads(out)
    assert status == 0
    assert told["reused"] == list(ORDER)
    assert "train: reused" in err
    assert before == {p: p.stat().st_mtime_ns for p in (here / "runs" / "small" / "package").iterdir()}


def test_a_changed_key_runs_only_what_reads_it(here, capsys):
    status, out, _ = crab("run", "small.yaml", "evaluate.seed=1", "--json", capsys=capsys)
    assert status == 0
    assert json.loads(out)["reused"] == ["collect", "prepare", "tune", "train"]


def test_changed_data_is_noticed(here, capsys):
    with open(here / "rows.csv", "a") as file:
        file.write("the weather is odd,yes\n")
    _, out, _ = crab("plan", "small.yaml", "--json", capsys=capsys)
    assert [row["action"] for row in json.loads(out)["stages"]] == ["run"] * len(ORDER)


def test_plan_runs_nothing_and_estimates_what_it_can(here, capsys):
    _, out, _ = crab("plan", "small.yaml", "train.steps=13", "--json", capsys=capsys)
    rows = {row["stage"]: row for row in json.loads(out)["stages"]}
    assert rows["prepare"]["action"] == "reuse"
    assert rows["train"]["action"] == "run"
    assert rows["train"]["needs"]["seconds"] > 0
    assert rows["train"]["needs"]["memory"] > 1e8
    assert len(Store(here / ".crab" / "store").runs()) == 1


def test_the_package_verifies_with_and_without_the_key(here, capsys):
    key = str(here / "config" / "hermitcrab" / "signing-key.pub.pem")
    status, out, _ = crab("verify", "runs/small/package", capsys=capsys)
    assert status == 0
    assert "signer not authenticated" in out
    status, out, _ = crab("verify", "runs/small/package", "--key", key, "--json", capsys=capsys)
    assert status == 0
    assert json.loads(out)["authenticated"] is True


def test_parity_can_be_computed_afresh_and_another_base_is_found_out(here, capsys):
    status, out, err = crab("verify", "runs/small/package", "--recompute", "--json", capsys=capsys)
    assert status == 0, err
    assert any(c["check"] == "parity afresh" and c["ok"] for c in json.loads(out)["checks"])
    from tiny import write_model

    write_model(here / "other", hidden_act="relu")
    status, out, _ = crab("verify", "runs/small/package", "--recompute", "--base", "other", "--json", capsys=capsys)
    assert status == 1
    assert "another base" in json.loads(out)["failures"][0]["message"]


def test_a_flipped_bit_in_any_kind_of_file_is_named(here, capsys):
    package, draw = here / "runs" / "small" / "package", random.Random(7)
    files = sorted(p for p in package.rglob("*") if p.is_file())
    assert {"small-Q8_0.gguf", "claims.jsonl", "model.sig", "signer.pub.pem", "README.md", "ml-bom.cdx.json"} <= {
        p.name for p in files
    }
    for file in files:
        whole = file.read_bytes()
        bit = draw.randrange(8 * len(whole))
        file.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        status, out, _ = crab("verify", str(package), "--json", capsys=capsys)
        name = file.relative_to(package).as_posix()
        assert status == 1, (name, bit)
        assert name in {f["file"] for f in json.loads(out)["failures"]}, (name, bit)
        file.write_bytes(whole)
    assert crab("verify", str(package), capsys=capsys)[0] == 0


def test_gc_after_a_kill_keeps_what_the_run_had_made(here, capsys, monkeypatch):
    def die(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hermitcrab.train.loop.Fit._steps", die)
    (here / "rows.csv").write_text((here / "rows.csv").read_text() + "the weather is odd,yes\n")
    assert crab("run", "small.yaml", "name=fresh", capsys=capsys)[0] == 1
    kept = len(list((here / ".crab/store/artifacts").iterdir()))
    assert json.loads(crab("gc", "--json", capsys=capsys)[1])["removed"] == []
    assert len(list((here / ".crab/store/artifacts").iterdir())) == kept == len(ORDER) + 3
    assert len(list((here / ".crab/store/drafts").iterdir())) == 1
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "config"))
    assert crab("show", "fresh", capsys=capsys)[0] == 1
    status, out, _ = crab("run", "small.yaml", "name=fresh", "--json", capsys=capsys)
    assert status == 0
    assert json.loads(out)["reused"] == ["collect", "prepare", "tune"]


def test_a_copied_project_is_a_project_of_its_own(here, capsys):
    """Store and runs keep no absolute path, so both can be moved."""
    assert json.loads(crab("run", "small.yaml", "--json", capsys=capsys)[1])["folder"] == "small"
    status, _, err = crab("run", "small.yaml", "--runs", "elsewhere", capsys=capsys)
    assert status == 2
    assert "give this one another name" in err


def test_a_flipped_bit_of_the_weights_is_mended_by_the_next_run(here, capsys):
    file = here / "runs" / "small" / "package" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    status, out, _ = crab("verify", "runs/small/package", "--json", capsys=capsys)
    assert status == 1
    assert "model.safetensors" in {f["file"] for f in json.loads(out)["failures"]}
    assert crab("run", "small.yaml", capsys=capsys)[0] == 0  # the store still has the right one
    assert crab("verify", "runs/small/package", capsys=capsys)[0] == 0


def test_the_package_is_what_others_load(here):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = here / "runs" / "small" / "package"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(package), AutoTokenizer.from_pretrained(package)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the weather is good"}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] > ids.shape[1]
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(here / "base")
    assert PeftModel.from_pretrained(base, package / "adapter") is not None
    key = here / "config" / "hermitcrab" / "signing-key.pub.pem"
    command = [
        Path(sys.executable).with_name("model_signing"),
        "verify",
        "key",
        package,
        "--signature",
        package / "model.sig",
        "--public_key",
        key,
    ]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_what_is_measured_is_what_ships(here):
    _, artifacts = find_run("small", Store(here / ".crab" / "store"))
    trained = {f["path"]: f["sha256"] for f in artifacts["train"].manifest["files"]}
    package = {f["path"]: f["sha256"] for f in artifacts["package"].manifest["files"]}
    assert package["model.safetensors"] == trained["model/model.safetensors"]
    parity = artifacts["train"].read("parity.json")
    assert parity["ok"]
    assert parity["mean_kl_to_base"] > parity["mean_kl"]


def test_no_key_and_no_path_of_this_machine_is_recorded(here):
    secret = (here / "config" / "hermitcrab" / "signing-key.pem").read_text().splitlines()[1]
    for file in [*(here / "runs").rglob("*"), *(here / ".crab" / "store" / "artifacts").rglob("*")]:
        if file.is_file():
            data = file.read_bytes()
            assert secret.encode() not in data, file
            if "runs" in file.parts or "payload" in file.parts:
                assert str(here).encode() not in data, file


def test_show_tells_runs_packages_and_recipes(here, capsys):
    for what in ("small", "runs/small"):
        status, out, _ = crab("show", what, capsys=capsys)
        assert status == 0
        assert "built on" in out
    assert "small" in crab("show", "runs/small/package", capsys=capsys)[1]
    assert json.loads(crab("show", "small", "--json", capsys=capsys)[1])
    assert "<html" in (here / "runs" / "small" / "report.html").read_text()


def test_gc_keeps_a_run_and_frees_it_when_its_folder_is_gone(here, capsys):
    assert json.loads(crab("gc", "--json", capsys=capsys)[1])["removed"] == []
    shutil.rmtree(here / "runs" / "small")
    assert len(json.loads(crab("gc", "--json", capsys=capsys)[1])["removed"]) == len(ORDER)


@pytest.mark.parametrize(
    ("override", "status", "said"),
    [
        ("base.path=bsae", 2, "no such file or folder"),
        ("data.train.path=rosw.csv", 2, "no such file or folder; did you mean `rows.csv`?"),
        ("data.train.license=CC-BY-NC-4.0", 1, "forbids commercial use"),
        ("data.train.license=Apache2", 2, "Apache-2.0"),
        ("data.licenses.deny=[CC0-1.0]", 1, "its license CC0-1.0 is denied by data.licenses"),
        ("data.licenses.allow=[MIT, CC-BY-*]", 1, "its license CC0-1.0 is not"),
        ("task=text-generaton", 2, "did you mean `text-generation`?"),
        ("evaluate.choices=[yes, maybe]", 1, "evaluate.choices does not have ['no']"),
        ("evaluate.choices=[yes]", 2, "choices are at least two"),
        ("evaluate.choices=[]", 2, "few_shot, calibrate and baselines need choices"),
        ("data.split.validation=0", 1, "evaluate.calibrate needs validation rows"),
        ("evaluate.few_shot=500", 1, "the training rows have"),
        ("base.init_seed=3", 2, "base.init_seed is for a base that starts from `scratch`"),
        ("train.lora.targets=[q_prj]", 1, "no linear module `q_prj`; did you mean `q_proj`?"),
        ("data.split.test=1000", 1, "1,000"),
        ("train.sequence_length=8", 1, "no trainable token"),
        ("compress.gguf=[Q9_K]", 2, "compress.gguf"),
        ("compress.gguf=[Q8_0, Q8_0]", 2, "each type is given once"),
        ("compress.gguf=[]", 2, "none is asked for"),
    ],
)
def test_misuse_is_one_sentence(here, capsys, override, status, said):
    found, _, err = crab("run", "small.yaml", override, capsys=capsys)
    assert found == status
    last = [line for line in err.splitlines() if line.startswith("crab: ")]
    assert len(last) == 1
    assert said in err
    assert "Traceback" not in err


def test_a_run_that_cannot_fit_says_so_before_it_starts(here, capsys):
    status, _, err = crab("run", "small.yaml", "train.batch_size=100000", "train.sequence_length=100000", capsys=capsys)
    assert status == 1
    assert "GiB of memory" in err
    assert "train: running" not in err


def test_a_vanished_base_is_told(here, capsys):
    shutil.rmtree(here / "base")
    status, _, err = crab("run", "small.yaml", capsys=capsys)
    assert status == 2
    assert "base: no such file or folder" in err


def test_scratch_and_an_earlier_run_can_be_bases(here, capsys):
    text = RECIPE.replace("base: {path: base}", "base: {path: 'run:small'}").replace("name: small", "name: second")
    (here / "second.yaml").write_text(text)
    status, _, err = crab("run", "second.yaml", "train.steps=2", capsys=capsys)
    assert status == 0, err
    scratch = yaml.safe_load(text)
    scratch["name"] = "fresh"
    scratch["base"] = {"path": "scratch", "tokenizer": "base", "license": "Apache-2.0",
                       "architecture": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                                        "num_attention_heads": 4, "num_key_value_heads": 2}}  # fmt: skip
    scratch["train"] |= {"method": "full", "steps": 3}
    scratch["package"] = {"license": "Apache-2.0"}
    scratch["compress"] = {"gguf": ["Q8_0"], "rows": 4}
    (here / "fresh.yaml").write_text(yaml.safe_dump(scratch))
    status, _, err = crab("run", "fresh.yaml", capsys=capsys)
    assert status == 0, err
    store = Store(here / ".crab" / "store")
    _, artifacts = find_run("fresh", store)
    seed, commitment = artifacts["train"].facts["init"], artifacts["train"].read("training.json")["init_commitment"]
    import hashlib

    assert commitment == "sha256:" + hashlib.sha256(f"{seed['seed']}|{seed['nonce']}".encode()).hexdigest()
    assert str(seed["seed"]) not in (here / "runs" / "fresh" / "package" / "claims.jsonl").read_text()
    assert crab("verify", "runs/fresh/package", capsys=capsys)[0] == 0
    told = f"{seed['seed']}:{seed['nonce']}"
    status, out, err = crab("verify", "runs/fresh/package", "--seed", told, "--json", capsys=capsys)
    assert status == 0, out + err
    assert [c["ok"] for c in json.loads(out)["checks"] if c["check"] == "seed"] == [True]
    assert crab("verify", "runs/fresh/package", "--seed", f"{told}0", capsys=capsys)[0] == 1
    # No two runs share an initialization unless they mean to.
    first = artifacts["train"].digest
    shutil.rmtree(artifacts["train"].path)
    assert crab("run", "fresh.yaml", capsys=capsys)[0] == 0
    assert find_run("fresh", store)[1]["train"].digest != first


def test_messages_text_and_unsigned_packages_go_through(here, capsys):
    rows = question_rows(60).to_pylist()
    with open(here / "chat.jsonl", "w") as file:
        for row in rows:
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
            file.write(json.dumps({"messages": turns}) + "\n")
    (here / "plain.txt").write_text("\n\n".join(f"{r['prompt']}. the answer is {r['completion']}." for r in rows))
    short = ["train.steps=2", "evaluate.few_shot=0", "evaluate.calibrate=false", "evaluate.baselines=[]", "evaluate.choices=[]",
             "evaluate.max_new_tokens=4", "package.sign=false", "data.split.test=20"]  # fmt: skip
    for name, file, form in (("chat", "chat.jsonl", "messages"), ("plain", "plain.txt", "text")):
        status, _, err = crab(
            "run",
            "small.yaml",
            f"name={name}",
            f"data.train.path={file}",
            f"data.train.format={form}",
            *short,
            capsys=capsys,
        )
        assert status == 0, err
        metrics = read_json(next((here / ".crab/store/artifacts").glob("*/payload/metrics.json")))
        assert metrics
        status, out, _ = crab("verify", f"runs/{name}/package", "--json", capsys=capsys)
        assert status == 1
        assert "unsigned" in json.dumps(json.loads(out)["failures"]).lower()


def test_every_key_of_the_schema_is_read_by_something(here, monkeypatch, capsys):
    """Reads of every field are watched through runs that use every feature; what nobody reads is named."""
    read: set[tuple[str, str]] = set()
    original = Part.__getattribute__

    def watch(self: Part, name: str) -> Any:
        if name in type(self).model_fields:
            read.add((type(self).__name__, name))
        return original(self, name)

    monkeypatch.setattr(Part, "__getattribute__", watch)
    base = here / "base"
    small = ["train.steps=2", "train.patience=1", "train.validate_every=1"]
    assert main(["run", "small.yaml", *small]) == 0
    assert main(["run", "small.yaml", "name=full", "train.method=full", "evaluate.choices=[]", "evaluate.few_shot=0",
                 "evaluate.calibrate=false", "evaluate.baselines=[]", "evaluate.max_new_tokens=2", *small]) == 0  # fmt: skip
    text = yaml.safe_load(RECIPE)
    text |= {"name": "fresh", "package": {"license": "Apache-2.0"}}
    text |= {"tune": {"train.learning_rate": [1e-3, 2e-3], "trials": 1}}
    text["train"] |= {"method": "full", "steps": 2}
    taught = {"steps": 1, "learning_rate": 1e-4, "batch_size": 2}
    text["compress"] = {
        "gguf": ["Q8_0"], "prune": {"method": "width", "heal": {**taught, "distill": True}}, "rows": 4, "target": {"max_loss": 1.0},
        "distill": {"start": "new", "architecture": {"intermediate_size": 8}, **taught},
    }  # fmt: skip
    text["base"] = {"path": "scratch", "tokenizer": str(base), "license": "Apache-2.0", "init_seed": 7,
                    "architecture": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                                     "num_attention_heads": 2}}  # fmt: skip
    (here / "fresh.yaml").write_text(yaml.safe_dump(text))
    monkeypatch.setattr("hermitcrab.compress.parity.check_distance", lambda *_: None)  # nobody learns in so few steps
    run = Run(recipes.load(here / "fresh.yaml"), Store(here / ".crab/store"), here / "runs")
    run.execute()
    parts = {p.__name__: p for p in [recipes.Recipe, *_all_parts(recipes.Recipe)]}
    unread = [
        f"{name}.{field}" for name, part in parts.items() for field in part.model_fields if (name, field) not in read
    ]
    # The report shows texts by what gather finds in the recorded recipe, which is plain JSON by then.
    # Token files and windows of series are asked for in runs of other tests (stages/test_prepare.py, tasks/test_every_task.py).
    elsewhere = [f"Tokens.{f}" for f in ("tokenizer", "vocab_size", "sample")]
    elsewhere += [f"Windows.{f}" for f in ("context", "horizon", "stride")]
    assert unread == ["Recipe.report", "Report.show_text", *elsewhere]


def _all_parts(part: type[Part]) -> list[type[Part]]:
    inner = [p for f in part.model_fields.values() for p in recipes.parts_in(f.annotation)]
    return inner + [q for p in inner for q in _all_parts(p)]
