import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from hermitcrab.data.tables import row_id
from hermitcrab.digest import digest_bytes, digest_file, digest_json
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.pipeline import references
from hermitcrab.recipe import parse
from hermitcrab.references import fetch, resolve
from hermitcrab.stages import PACKAGE, Job
from hermitcrab.stages.collect import STAGE, collect_rows
from hermitcrab.store import Store

CSV = b"prompt,completion,site\nfine,1,a\nawful,0,b\ngood,1,a\n"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with a few files of rows."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_bytes(CSV)
    Path("more.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "more", "completion": 1}\n', mtime=0))
    return tmp_path


IMAGES = "task: image-classification\nbase: {path: scratch, architecture: {model_type: mlp, hidden_sizes: [4]}, license: MIT}"


def recipe(data: str):
    head = IMAGES if "image-label" in data else "task: text-generation\nbase: {path: base}"
    return parse(f"name: x\n{head}\ndata: {data}\n")


def collected(data: str, store=None):
    """Rows of a recipe's sources, as the stage leaves them (the base is not looked at)."""
    store, whole = store or Store("store"), recipe(data)
    sources = [*whole.data.train, *whole.data.validation, *whole.data.test]
    resolved = {source.reference: resolve(source.reference, None, store) for source in sources}
    asked = {"slice": STAGE.slice(whole).model_dump(mode="json")}
    with store.draft("collect", digest_json(asked), asked) as draft:
        collect_rows(
            Job(STAGE.slice(whole), {}, draft, {r: fetch(found, store) for r, found in resolved.items()}, resolved)
        )
        return store.seal(draft)


def rows(artifact, split="train"):
    return pq.read_table(artifact.payload / f"{split}.parquet").to_pylist()


def test_sources_of_a_split_stand_in_one_table_with_their_names(place):
    artifact = collected("{train: [{path: rows.csv, license: MIT, where: {site: a}},"
                         " {path: more.jsonl.gz, license: CC0-1.0}],"
                         " test: {path: rows.csv, license: MIT, where: {site: b}, document: site}}")  # fmt: skip
    assert [(r["source"], r["prompt"], r["completion"]) for r in rows(artifact)] == [
        ("rows.csv", "fine", "1"), ("rows.csv", "good", "1"), ("more.jsonl.gz", "more", "1"),
    ]  # fmt: skip
    assert [r["document"] for r in rows(artifact, "test")] == ["b"]
    assert not (artifact.payload / "validation.parquet").exists()
    assert rows(artifact)[1]["row_id"] == row_id(digest_bytes(CSV), 2)
    assert artifact.read("ledger.json") == [
        {
            "name": "train rows",
            "unit": "rows",
            "taken": 4,
            "kept": 3,
            "dropped": {"not selected: site is not a": 1},
            "changed": {},
        },
        {
            "name": "test rows",
            "unit": "rows",
            "taken": 3,
            "kept": 1,
            "dropped": {"not selected: site is not b": 2},
            "changed": {},
        },
    ]
    first = artifact.read("sources.json")[0]
    assert first == {
        "uri": "rows.csv", "split": "train", "sha256": digest_bytes(CSV), "size": len(CSV), "license": "MIT",
        "type": "csv", "format": "prompt-completion", "rows_read": 3, "rows_kept": 2,
    }  # fmt: skip


def test_files_of_a_pattern_are_one_source_whatever_they_are_called(place):
    Path("many").mkdir()
    for name, text in (("a", "one"), ("b", "two"), ("copy", "one")):
        Path(f"many/{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    data = "{train: {path: 'many/*.jsonl', license: MIT, format: text}}"
    artifact = collected(data)
    assert [(r["source"], r["text"]) for r in rows(artifact)] == [("many/a.jsonl", "one"), ("many/b.jsonl", "two")]
    assert artifact.read("ledger.json")[0]["dropped"] == {"row of a file that is the same as another of its source": 1}
    assert [s["sha256"] for s in artifact.read("sources.json")] == [
        digest_file(Path(f"many/{n}.jsonl")) for n in ("a", "b", "copy")
    ]
    Path("many/a.jsonl").rename("many/z.jsonl")
    again = collected(data, Store("other"))
    assert {r["row_id"]: r["text"] for r in rows(again)} == {r["row_id"]: r["text"] for r in rows(artifact)}
    folder = collected("{train: {path: many, license: MIT, format: text}}", Store("third"))
    assert {r["row_id"] for r in rows(folder)} == {r["row_id"] for r in rows(artifact)}


def test_pattern_that_names_nothing_is_refused(place):
    with pytest.raises(UsageError, match="no file has a name of this pattern"):
        collected("{train: {path: 'none/*.csv', license: MIT}}")


def test_folder_of_images_is_one_source(place):
    from PIL import Image

    for label in ("a", "b"):
        Path(f"pics/{label}").mkdir(parents=True)
        Image.new("L", (3, 3), ord(label)).save(f"pics/{label}/1.png")
    artifact = collected("{train: {path: pics, license: MIT, format: image-label}}")
    assert [r["label"] for r in rows(artifact)] == ["a", "b"]
    (about,) = artifact.read("sources.json")
    assert (about["type"], about["rows_kept"]) == ("images", 2)


def test_password_never_stands_in_a_recipe(place):
    with pytest.raises(UsageError, match="env:NAME") as told:
        STAGE.slice(recipe("{train: {path: 'postgresql://me:hunter2@h/d', query: select 1, license: MIT}}"))
    assert "hunter2" not in str(told.value)


def test_full_disk_leaves_nothing_under_a_final_name(place):
    import subprocess
    import sys

    Path("big.txt").write_bytes(
        b"".join(bytes(np.random.default_rng(i).integers(97, 122, 200, np.uint8)) + b"\n" for i in range(40_000))
    )
    script = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
import test_collect
test_collect.collected("{train: {path: big.txt, type: lines, license: MIT, format: text}}")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert ended.returncode != 0
    assert "File too large" in ended.stderr
    assert not list(Path("store").glob("artifacts/*"))
    assert len(rows(collected("{train: {path: big.txt, type: lines, license: MIT, format: text}}"))) == 40_000


def test_same_sources_give_the_same_digest(place):
    data = "{train: {path: rows.csv, license: MIT}, validation: {path: more.jsonl.gz, license: MIT}}"
    assert collected(data).digest == collected(data, Store("other")).digest


def test_file_that_is_not_the_one_meant_is_refused(place):
    with pytest.raises(
        HermitcrabError, match=f"rows.csv: is not the file .* Received: {digest_bytes(CSV)}, expected: sha256:0a0a"
    ):
        collected(f"{{train: {{path: rows.csv, license: MIT, sha256: {'0a' * 32}}}}}")


def test_bad_row_stops_or_is_dropped_as_the_recipe_says(place):
    Path("bad.csv").write_bytes(CSV + b"only one cell\n")
    with pytest.raises(HermitcrabError, match=r"bad.csv: row 4 \(line 5\): received 1 cells"):
        collected("{train: {path: bad.csv, license: MIT}}")
    artifact = collected("{train: {path: bad.csv, license: MIT}, on_error: drop}")
    assert artifact.read("ledger.json")[0]["dropped"] == {"bad row: not as many cells as the header": 1}
    assert artifact.read("sources.json")[0]["rows_kept"] == 3


def test_one_row_does_not_enter_a_split_twice(place):
    with pytest.raises(HermitcrabError, match=r"rows.csv: row .* comes from two sources of data.train"):
        collected("{train: [{path: rows.csv, license: MIT}, {path: rows.csv, license: MIT, where: {site: a}}]}")


def test_what_is_wrong_with_sources_is_said_before_anything_runs():
    with pytest.raises(UsageError, match="share one format"):
        STAGE.slice(recipe("{train: {path: a.csv, license: MIT}, test: {path: b.txt, license: MIT, format: text}}"))
    with pytest.raises(UsageError, match="did you mean `completion`"):
        STAGE.slice(recipe("{train: {path: a.csv, license: MIT, columns: {completions: x}}}"))


def test_source_that_vanished_is_one_sentence(place):
    store, whole = Store("store"), recipe("{train: {path: rows.csv, license: MIT}}")
    with (
        store.draft("collect", digest_json("x"), {}) as draft,
        pytest.raises(HermitcrabError, match="cannot be read: No such file"),
    ):
        collect_rows(Job(STAGE.slice(whole), {}, draft, {"rows.csv": place / "gone.csv"}))


def collected_whole(base: str) -> dict[str, Any]:
    """What the stage records of a base."""
    store = Store("store")
    text = f"name: x\ntask: text-generation\nbase: {base}\ndata: {{train: {{path: rows.csv, license: MIT}}}}\n"
    whole = parse(text)
    resolved = {reference: resolve(reference, sha256, store) for reference, sha256 in references(whole)}
    with store.draft("collect", digest_json(text), {}) as draft:
        STAGE.run(
            Job(STAGE.slice(whole), {}, draft, {r: found.path for r, found in resolved.items() if found.path}, resolved)
        )
        artifact = store.seal(draft)
    assert len(rows(artifact)) == 3
    return artifact.read("base.json")


@pytest.fixture
def tokenizer(place) -> Path:
    words = {"<unk>": 0, "</s>": 1, "fine": 2, "awful": 3}
    Path("words").mkdir()
    Tokenizer(models.WordLevel(words, "<unk>")).save("words/tokenizer.json")
    Path("words/tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "unk_token": "<unk>"}))
    return Path("words")


ARCHITECTURE = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "vocab_size": 4}  # fmt: skip


def test_base_from_scratch_is_described_by_its_tokenizer(tokenizer):
    base = collected_whole(json.dumps(
        {"path": "scratch", "tokenizer": "words", "license": "MIT", "architecture": ARCHITECTURE}))  # fmt: skip
    assert (base["kind"], base["model_type"], base["license"]["used"]) == ("scratch", "llama", "MIT")
    assert {file["path"] for file in base["files"]} == {"tokenizer.json", "tokenizer_config.json"}


def test_base_in_a_folder_is_described_by_the_digests_of_its_files(tokenizer):
    (tokenizer / "config.json").write_text(json.dumps(ARCHITECTURE))
    save_file({"model.embed_tokens.weight": np.zeros((4, 8), "float32")}, tokenizer / "model.safetensors")
    base = collected_whole("{path: words, license: MIT}")
    assert (base["uri"], base["kind"], base["parameters"], base["dtypes"]) == ("words", "safetensors", 32, {"F32": 1})
    files = {file["path"]: file["sha256"] for file in base["files"]}
    assert files["model.safetensors"] == digest_file(tokenizer / "model.safetensors")


def test_key_of_the_stage_covers_code_that_is_there():
    assert STAGE.code_digest().startswith("sha256:")
    assert not [name for name in STAGE.code if not (PACKAGE / name).exists()]


@pytest.mark.data
def test_real_reviews_become_prompts_and_completions(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    artifact = collected(f"""
  train:
    path: {shared_data}/sentiment/reviews_en.csv.gz
    license: LicenseRef-research
    columns: {{prompt: "Review: {{text}}\\nSentiment:", completion: label}}
    values: {{label: {{"0": negative, "1": positive}}}}
""")
    found = rows(artifact)
    assert len(found) == 8530
    assert {r["completion"] for r in found} == {"positive", "negative"}
    assert all(r["prompt"].startswith("Review: ") and r["prompt"].endswith("\nSentiment:") for r in found)
    assert found[0]["source"] == "file:reviews_en.csv.gz"
