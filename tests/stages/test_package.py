import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "lineage"))
from lineage_artifacts import PARITY, chain, packaged, source

from hermitcrab.digest import digest_file, digest_json, tree_files
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import parse
from hermitcrab.stages.package import STAGE, slice_of
from hermitcrab.store import Store

EXPECTED = [
    "README.md",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "comparison.json",
    "config.json",
    "gguf/tiny-reviews-Q8_0.gguf",
    "hermitcrab.json",
    "metrics.json",
    "ml-bom.cdx.json",
    "model.safetensors",
    "tensors.json",
    "tokenizer.json",
]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def made(store, tmp_path):
    return chain(store, tmp_path)


def test_the_package_is_the_trained_model_with_card_bill_and_record(store, made):
    package = packaged(store, made)["package"]
    assert tree_files(package.payload) == EXPECTED
    for name, origin in (("model.safetensors", "train"), ("tokenizer.json", "train")):
        assert digest_file(package.payload / name) == digest_file(made[origin].payload / "model" / name)
    assert digest_file(package.payload / "metrics.json") == digest_file(made["evaluate"].payload / "metrics.json")


def test_the_record_says_what_the_model_is(store, made):
    record = packaged(store, made)["package"].read("hermitcrab.json")
    base = made["collect"].read("base.json")
    assert {name: record[name] for name in ("schema", "name", "task", "use", "choices", "license")} == {
        "schema": 1, "name": "tiny-reviews", "task": "text-generation", "use": "commercial",
        "choices": ["yes", "no"], "license": "Apache-2.0",
    }  # fmt: skip
    assert record["base"]["digest"] == base["digest"]
    assert record["base"]["license"] == "Apache-2.0"
    assert record["template_digest"] == made["train"].read("training.json")["template_digest"]
    assert record["parity"] == PARITY
    assert [w["path"] for w in record["weights"]["files"]] == ["model.safetensors"]
    assert record["weights"]["digest"] == digest_json(record["weights"]["files"])
    assert [s["split"] for s in record["data"]] == ["train", "test"]


def test_compressed_files_are_packaged_and_told_in_record_card_and_bill(store, made):
    package = packaged(store, made)["package"]
    (entry,) = package.read("hermitcrab.json")["compressed"]
    assert entry == made["compress"].read("compression.json")[0]
    assert digest_file(package.payload / entry["file"]) == entry["files"][0]["sha256"]
    card = (package.payload / "README.md").read_text()
    assert (
        f"| `{entry['file']}` | 0.0 MB | 8.50 | 0.79 − 0.8 = -0.01 (-0.03 to 0.01) | within 0.04 | 3 (+1 / −2) | 0.0004 | 99.0% |"
        in card
    )
    assert "- gguf" in card
    (component,) = [
        c for c in package.read("ml-bom.cdx.json")["metadata"]["component"]["components"] if c["name"] == entry["file"]
    ]
    told = {p["name"]: p["value"] for p in component["properties"]}
    assert told["hermitcrab:size"] == str(entry["size"])
    assert told["hermitcrab:mean_kl"] == "0.0004"


def test_a_run_that_compresses_nothing_has_a_package_without(store, tmp_path):
    package = packaged(store, chain(store, tmp_path, compressed=False))["package"]
    assert package.read("hermitcrab.json")["compressed"] == []
    assert "Compressed" not in (package.payload / "README.md").read_text()
    assert not (package.payload / "gguf").exists()


def test_packaging_twice_gives_the_same_digest(tmp_path):
    digests = []
    for name in ("one", "two"):
        store = Store(tmp_path / name)
        digests.append(packaged(store, chain(store, tmp_path))["package"].digest)
    assert digests[0] == digests[1]


def test_full_fine_tuning_has_no_adapter_and_nothing_is_made_of_absent_choices(store, made):
    for file in list(made["train"].manifest["files"]):
        if file["path"].startswith("adapter/"):
            made["train"].manifest["files"].remove(file)
    package = packaged(store, made, choices=[])["package"]
    assert not (package.payload / "adapter").exists()
    assert "choices" not in package.read("hermitcrab.json")


def test_a_file_that_changed_in_the_store_is_not_packaged(store, made):
    path = made["train"].payload / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(HermitcrabError, match=r"model\.safetensors: the file changed in the store"):
        packaged(store, made)


def test_a_file_that_vanished_from_the_store_is_one_sentence(store, made):
    (made["train"].payload / "model" / "config.json").unlink()
    with pytest.raises(HermitcrabError, match=r"config\.json: gone from the store"):
        packaged(store, made)


@pytest.mark.parametrize("name", ["README.md", "model.sig", "hermitcrab.json"])
def test_a_model_that_brings_a_file_of_the_packages_own_is_refused(store, made, name):
    made["train"].manifest["files"].append({"path": f"model/{name}", "sha256": "sha256:0", "size": 1})
    with pytest.raises(HermitcrabError, match=f"brings a file called {name}"):
        packaged(store, made)


def test_a_license_that_forbids_the_use_stops(store, tmp_path):
    made = chain(store, tmp_path, sources=[source("train", "CC-BY-NC-4.0"), source("test")])
    with pytest.raises(HermitcrabError, match=r"CC-BY-NC-4\.0 forbids commercial use"):
        packaged(store, made)
    record = packaged(store, made, use="non-commercial")["package"].read("hermitcrab.json")
    assert record["license"] == "Apache-2.0 AND CC-BY-NC-4.0"


def test_a_declared_license_must_keep_that_of_the_base(store, tmp_path):
    kept = {"license": {"found": "llama3.2", "declared": None, "used": "LicenseRef-Llama-3.2"}}
    made = chain(store, tmp_path, base=kept)
    with pytest.raises(HermitcrabError, match="does not keep the license of the base"):
        packaged(store, made, license="MIT")


def test_the_slice_takes_what_the_package_depends_on_and_no_more():
    text = """
name: a
task: text-generation
base: {path: x.gguf}
data: {train: {path: a.csv, license: MIT}}
evaluate: {choices: [x, y]}
package: {license: MIT, sign: SIGN}
train: {epochs: EPOCHS}
"""
    one, two = (
        slice_of(parse(text.replace("SIGN", s).replace("EPOCHS", e))) for s, e in (("true", "1"), ("false", "2"))
    )
    assert one == two
    assert json.loads(one.model_dump_json()) == {
        "name": "a", "task": "text-generation", "use": "commercial", "license": "MIT", "choices": ["x", "y"],
    }  # fmt: skip


def test_the_code_of_the_stage_has_a_digest():
    assert STAGE.code_digest().startswith("sha256:")
