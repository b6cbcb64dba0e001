import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hermitcrab.errors import HermitcrabError
from hermitcrab.models import ggml
from hermitcrab.models.base import describe
from hermitcrab.models.formats import open_weights
from hermitcrab.models.load import init_model, load_model, load_text, load_tokenizer, save_tokenizer
from hermitcrab.recipe import Base
from hermitcrab.references import Resolved, resolve
from hermitcrab.store import Store


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny-llama", tie_word_embeddings=True)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny-llama"))


def told(path: Path, **part: object) -> dict:
    return describe(path, resolve(str(path), None, Store(path.parent / "store")), Base(path=str(path), **part))


def change(folder: Path, **values: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    ours, theirs = dict(one.named_parameters()), dict(two.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def in_own_memory(model: torch.nn.Module) -> bool:
    return all(p.data_ptr() % 64 == 0 and p.is_contiguous() for p in model.parameters())


@pytest.fixture(scope="module")
def smol(smollm2_resolved: Resolved) -> tuple[dict, Path, torch.nn.Module]:
    path = smollm2_resolved.path
    assert path is not None
    base = describe(path, smollm2_resolved, Base(path=smollm2_resolved.reference))
    return base, path, load_model(base, path, torch.float32)


def test_a_ggufs_parameters_are_its_unpacked_tensors(smol: tuple) -> None:
    _, path, model = smol
    weights, parameters = open_weights(path), dict(model.named_parameters())
    config, names = ggml.configuration(weights), ggml.tensor_names(weights)
    assert set(parameters) == set(names)
    for name, theirs in names.items():
        assert np.array_equal(parameters[name].detach().numpy(), ggml.read_tensor(weights, theirs, config))


def test_a_gguf_becomes_an_ordinary_model(smol: tuple, tmp_path: Path) -> None:
    base, path, model = smol
    assert not hasattr(model.config, "quantization_config")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert in_own_memory(model)
    assert not model.training
    half = load_model(base, path, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(half.lm_head.weight, model.lm_head.weight.to(torch.bfloat16))
    half.save_pretrained(tmp_path)
    save_tokenizer(base, path, tmp_path)
    assert str(path.parent) not in (tmp_path / "config.json").read_text()
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path), half)
    assert AutoTokenizer.from_pretrained(tmp_path)("It's 2024")["input_ids"] == load_text(base, path).encode(
        "It's 2024"
    )


def test_its_text_is_sane(smol: tuple) -> None:
    base, path, model = smol
    tokenizer = load_tokenizer(base, path)
    talk = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=16, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_as_transformers_loads_it(folder: Path, dtype: torch.dtype) -> None:
    model = load_model(told(folder), folder, dtype)
    assert same(model, AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))
    assert in_own_memory(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == 2


def test_half_precision_shards_and_a_doubled_head_load_the_same(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md"):
        shutil.copy(folder / name, tmp_path / "shards" / name)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert same(load_model(told(tmp_path / "shards"), tmp_path / "shards", torch.bfloat16), model)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    base = told(folder)
    assert "pickle" in base["notes"][0]
    loaded = load_model(base, folder, torch.bfloat16)
    assert same(loaded, model)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_mixtures_of_experts_load_through_transformers_conversions(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "moe", "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8
    )
    assert same(load_model(told(folder), folder, torch.float32), AutoModelForCausalLM.from_pretrained(folder))


def test_other_bytes_than_recorded_are_not_loaded(folder: Path) -> None:
    base = told(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(HermitcrabError, match=r"model\.safetensors: is not the file that was recorded"):
        load_model(base, folder, torch.float32)
    load_text(base, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(HermitcrabError, match=r"tokenizer\.json: a file of the base is gone"):
        load_text(base, folder)


def test_a_file_that_changes_while_it_is_loaded_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = told(folder)
    real = ggml.Weights.raw

    def raw(weights: object, name: str) -> np.ndarray:
        read = real(weights, name)
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
        return read

    monkeypatch.setattr("hermitcrab.models.formats.weights.Weights.raw", raw)
    with pytest.raises(HermitcrabError, match=r"config\.json: changed while"):
        load_model(base, folder, torch.float32)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_size": 1 << 40}, "asks for|cannot build"),
        ({"vocab_size": 1 << 45}, "asks for|cannot build"),
        ({"num_hidden_layers": 1 << 40}, "layers"),
        ({"num_hidden_layers": 3}, "asks for|missing keys"),
        ({"num_hidden_layers": 1}, "unexpected keys"),
        ({"intermediate_size": 63}, "cannot build|mismatched"),
        ({"num_attention_heads": "x"}, "cannot build"),
        ({"model_type": "nonsense"}, "no model type"),
        ({"model_type": "vit"}, "no causal language model"),
    ],
)
def test_weights_that_do_not_fit_their_configuration_are_refused(folder: Path, values: dict, says: str) -> None:
    change(folder, **values)
    base = told(folder)
    with pytest.raises(HermitcrabError, match=says):
        load_model(base, folder, torch.float32)


def test_a_configuration_cannot_bring_code(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    change(folder, auto_map={"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.B"}, attn_implementation="org/kernel",
           _attn_implementation="org/kernel", transformers_weights="../../x")  # fmt: skip
    model = load_model(told(folder), folder, torch.float32)
    assert not (folder / "ran").exists()
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(folder / "out")
    saved = (folder / "out" / "config.json").read_text()
    assert "evil" not in saved
    assert "kernel" not in saved


def test_new_weights_come_from_their_seed_alone(folder: Path, tmp_path: Path) -> None:
    shape = dict(model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    part = Base(path="scratch", architecture=shape, tokenizer="tok", license="MIT")
    base = describe(folder, resolve("scratch", None, Store(tmp_path / "store")), part)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = init_model(base, folder, 1), init_model(base, folder, 1), init_model(base, folder, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, two)
    assert not same(one, other)
    assert {p.dtype for p in one.parameters()} == {torch.float32}
    assert one.config.vocab_size == load_text(base, folder).backend.get_vocab_size()


def test_a_class_that_cuts_otherwise_is_told(smol: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, path, _ = smol
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')  # for which transformers takes Qwen's own cut
    save_tokenizer(base, path, tmp_path)
    assert "Qwen2Tokenizer cuts" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_tokenizer(base, path, tmp_path)
    assert capsys.readouterr().err == ""


def test_loading_leaves_transformers_as_it_was(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    base = told(folder)
    capfd.readouterr()
    load_model(base, folder, torch.float32)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def test_extra_tensors_are_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, "hidden.tensor": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(HermitcrabError, match=r"unexpected keys, as hidden\.tensor"):
        load_model(told(folder), folder, torch.float32)
