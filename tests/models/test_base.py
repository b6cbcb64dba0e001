import json
import shutil
from pathlib import Path

import pytest
from tiny import write_model

from hermitcrab.digest import digest_file, digest_json
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.models.base import describe, spdx
from hermitcrab.models.tokenizer import read_tokenizer
from hermitcrab.recipe import Base
from hermitcrab.references import Resolved, resolve
from hermitcrab.store import Store


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny-llama"))


def told(path: Path, **part: object) -> dict:
    resolved = resolve(str(path), None, Store(path.parent / "store"))
    return describe(path, resolved, Base(path=str(path), **part))


def test_a_folder_is_described_by_what_the_loader_reads(folder: Path) -> None:
    base = told(folder)
    names = [f["path"] for f in base["files"]]
    assert names == sorted(names)
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(names)
    assert "README.md" not in names
    assert all(f["sha256"] == digest_file(folder / f["path"]) for f in base["files"])
    assert base["digest"] == digest_json(base["files"])
    assert (base["kind"], base["model_type"], base["architecture"]) == ("safetensors", "llama", "LlamaForCausalLM")
    assert base["license"] == {"found": "Apache-2.0", "declared": None, "used": "Apache-2.0"}
    assert base["name"] == "tiny-llama"
    assert base["parameters"] > 1000
    assert base["dtypes"] == {"F32": base["tensors"]}
    assert base["chat_template_digest"].startswith("sha256:")
    assert base["notes"] == []
    json.dumps(base)


def test_a_gguf_is_described_from_its_metadata(smollm2_resolved: Resolved) -> None:
    assert smollm2_resolved.path is not None
    base = describe(smollm2_resolved.path, smollm2_resolved, Base(path=smollm2_resolved.reference))
    assert (base["kind"], base["revision"], base["name"]) == ("gguf", "0.1.2", "SmolLM2-135M-Instruct.Q4_1")
    assert base["license"]["used"] == "Apache-2.0"
    assert base["parameters"] == 134_515_008
    assert base["dtypes"] == {"F32": 61, "Q4_1": 210, "Q8_0": 1}
    assert [f["sha256"] for f in base["files"]] == [smollm2_resolved.identity]


def test_an_unknown_license_stops_until_declared(folder: Path) -> None:
    (folder / "README.md").write_text("no front matter")
    (folder / "LICENSE").write_text("Apache License")
    with pytest.raises(HermitcrabError, match=r"read LICENSE.*base\.license"):
        told(folder)
    base = told(folder, license="apache-2.0")
    assert base["license"] == {"found": None, "declared": "Apache-2.0", "used": "Apache-2.0"}
    assert "LICENSE" in base["notes"][0]


@pytest.mark.parametrize(
    "card", ["---\nlicense: other\n---\n", "---\nlicense: [mit, gpl-3.0]\n---\n", "---\na: [\n---\n", "---\n- x\n---\n"]
)
def test_a_card_that_names_no_license_is_no_license(folder: Path, card: str) -> None:
    (folder / "README.md").write_text(card)
    with pytest.raises(HermitcrabError, match=r"base\.license"):
        told(folder)


def test_a_declared_license_that_differs_is_noted(folder: Path) -> None:
    base = told(folder, license="MIT")
    assert base["license"] == {"found": "Apache-2.0", "declared": "MIT", "used": "MIT"}
    assert "says Apache-2.0, the recipe declares MIT" in base["notes"][0]


def test_a_package_of_ours_carries_its_license(folder: Path) -> None:
    (folder / "hermitcrab.json").write_text('{"license": "CC-BY-4.0"}')
    assert told(folder)["license"]["found"] == "CC-BY-4.0"


def test_spelling_of_licenses() -> None:
    assert [spdx(x) for x in ("apache-2.0", " MIT ", "mit OR apache-2.0", "llama3.2")] == [
        "Apache-2.0", "MIT", "MIT OR Apache-2.0", "llama3.2",
    ]  # fmt: skip


def change(folder: Path, **values: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


def test_bases_that_cannot_be_used_are_refused(folder: Path) -> None:
    change(folder, vocab_size=10)
    with pytest.raises(HermitcrabError, match="embeds 10"):
        told(folder)
    change(folder, vocab_size=400, quantization_config={"quant_method": "gptq"})
    with pytest.raises(HermitcrabError, match="quantized"):
        told(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(HermitcrabError, match="model_type"):
        told(folder)
    (folder / "config.json").unlink()
    with pytest.raises(HermitcrabError, match=r"no config\.json"):
        told(folder)
    with pytest.raises(HermitcrabError, match="give the folder"):
        told(folder / "model.safetensors")


SCRATCH = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2}


def test_scratch_is_a_configuration_and_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    resolved = resolve("scratch", None, Store(tmp_path / "store"))
    part = Base(path="scratch", architecture=SCRATCH, tokenizer="tok", license="MIT")
    base = describe(folder, resolved, part)
    assert base["kind"] == "scratch"
    size = read_tokenizer(folder).backend.get_vocab_size()
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert base["configuration"] == {**SCRATCH, "vocab_size": size, **ids}
    assert {f["path"] for f in base["files"]} >= {"tokenizer.json", "tokenizer_config.json"}
    assert not any("safetensors" in f["path"] for f in base["files"])
    other = describe(folder, resolved, part.model_copy(update={"architecture": {**SCRATCH, "hidden_size": 64}}))
    assert other["digest"] != base["digest"]
    assert other["files"] == base["files"]
    with pytest.raises(UsageError, match=r"base\.architecture"):
        describe(folder, resolved, Base(path="scratch", tokenizer="tok", license="MIT"))
    with pytest.raises(HermitcrabError, match=r"set base\.license"):
        describe(folder, resolved, Base(path="scratch", tokenizer="tok", architecture=SCRATCH))
