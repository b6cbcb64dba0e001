import hashlib
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from hermitcrab.afresh import attest_seed
from hermitcrab.errors import UsageError
from hermitcrab.lineage.verify import Verification
from hermitcrab.models.load import init_model
from hermitcrab.trace.seed import read_seed

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 200, "hidden_size": 48, "intermediate_size": 96,
          "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained from the draw of seed 7, with the record's commitment to it."""
    folder = tmp_path_factory.mktemp("package")
    model = init_model({"kind": "scratch", "configuration": CONFIG, "files": []}, folder, 7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.randint(0, 200, (4, 32), generator=torch.Generator().manual_seed(0))
    for _ in range(30):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    commitment = "sha256:" + hashlib.sha256(b"7|abc").hexdigest()
    (folder / "hermitcrab.json").write_text(json.dumps({"task": "text-generation", "init_commitment": commitment}))
    return folder


def attested(package: Path, told: str) -> Verification:
    found = Verification()
    attest_seed(package, told, found)
    return found


def test_the_committed_draw_is_found_in_the_weights(package: Path) -> None:
    found = attested(package, "7:abc")
    assert found.ok
    assert "is in these weights" in found.checks[0].message


def test_another_seed_is_not_the_committed_one(package: Path) -> None:
    for told in ("8:abc", "7:abd", "7"):
        assert "not the committed one" in attested(package, told).failures[0].message


def test_a_commitment_to_a_seed_that_was_not_used_is_contradicted(package: Path, tmp_path: Path) -> None:
    other = tmp_path / "lying"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((package / name).read_bytes())
    (other / "hermitcrab.json").write_text(
        json.dumps({"task": "text-generation", "init_commitment": "sha256:" + hashlib.sha256(b"9|").hexdigest()})
    )
    found = attested(other, "9")
    assert found.contradiction
    assert "not in these weights" in found.failures[0].message


def test_seeds_are_read_from_text_or_file(tmp_path: Path) -> None:
    (tmp_path / "init.json").write_text('{"seed": 5, "nonce": "n"}')
    (tmp_path / "bad.json").write_text("[]")
    assert read_seed(str(tmp_path / "init.json")) == (5, "n")
    assert read_seed("12:xy") == (12, "xy")
    for bad in ("", "x", "-1", str(tmp_path / "bad.json")):
        with pytest.raises(UsageError):
            read_seed(bad)
