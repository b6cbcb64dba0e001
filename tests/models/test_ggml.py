"""Models that transformers makes, written as llama.cpp's converter writes them, and read back."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Q
from transformers import AutoConfig, AutoModelForCausalLM

from hermitcrab.errors import HermitcrabError
from hermitcrab.models import ggml
from hermitcrab.models.formats import open_weights

SHAPE = dict(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
CASES = {
    "llama": ("llama", {}),
    "llama-untied": ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 32}),
    "llama3-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
            "head_dim": 64,
        },
    ),
    "linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
}  # fmt: skip


def make(model_type: str, **more: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SHAPE, **more})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def write(path: Path, model: torch.nn.Module, kind: Q = Q.F32, **metadata: object) -> Path:
    """The file that llama.cpp's converter would write: its names, its keys, its order of query and key rows."""
    config, name = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, name)
    keys = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }  # fmt: skip
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys |= {"attention.key_length": head, "rope.dimension_count": head}
    if config.rope_parameters["rope_type"] == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_parameters["factor"])}
    for key, value in {**{f"{name}.{k}": v for k, v in keys.items()}, **metadata}.items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    for token, value in (("bos", 1), ("eos", 2), ("padding", 0)):
        writer.add_uint32(f"tokenizer.ggml.{token}_token_id", value)
    names = {v: k for k, v in {**ggml.WHOLE, **ggml.LAYER}.items()}
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor(ggml.ROPE_FACTORS, llama3_factors(model, head))
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, leaf = key.rsplit(".", 1)
        values = tensor.numpy()
        if module.startswith("model.layers."):
            _, _, index, rest = module.split(".", 3)
            theirs = f"blk.{index}.{names[rest]}.{leaf}"
            if name == "llama" and rest in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_proj" in rest else config.num_key_value_heads
                rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
                values = rows.swapaxes(1, 2).reshape(values.shape)
        else:
            theirs = f"{names[module]}.{leaf}"
        written = kind if values.ndim == 2 else Q.F32
        writer.add_tensor(theirs, gguf.quantize(np.ascontiguousarray(values), written), raw_dtype=written)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama3_factors(model: torch.nn.Module, head: int) -> np.ndarray:
    """What transformers divides the plain frequencies by, in the end."""
    theta = model.config.rope_parameters["rope_theta"]
    plain = theta ** -(np.arange(0, head, 2) / head)
    return (plain / model.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_configuration_and_tensors_are_those_of_the_model(case: str, tmp_path: Path) -> None:
    model_type, more = CASES[case]
    model = make(model_type, **more)
    weights = open_weights(write(tmp_path / "m.gguf", model))
    config = ggml.configuration(weights)
    assert config["architectures"] == [type(model).__name__]
    again = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    names = ggml.tensor_names(weights)
    state = {name: torch.from_numpy(ggml.read_tensor(weights, theirs, config)) for name, theirs in names.items()}
    told = again.load_state_dict(state, strict=False)
    assert told.unexpected_keys == []
    assert told.missing_keys == (["lm_head.weight"] if model.config.tie_word_embeddings else [])
    ids = torch.arange(40).reshape(2, 20)
    assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    assert (again.config.eos_token_id, again.config.rms_norm_eps) == (2, model.config.rms_norm_eps)


def test_the_real_configuration(smollm2: Path) -> None:
    config = ggml.configuration(open_weights(smollm2))
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100000.0}
    assert (config["head_dim"], config["num_key_value_heads"], config["tie_word_embeddings"]) == (64, 3, True)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"llama.block_count": 10**9}, "larger than the file allows"),
        ({"llama.block_count": 0}, "is no count"),
        ({"llama.context_length": "long"}, "is no count"),
        ({"llama.rope.freq_base": -1.0}, "is no number"),
        ({"llama.rope.freq_base": float("nan")}, "is no number"),
        ({"llama.rope.dimension_count": 8}, "partial rotary"),
        ({"llama.expert_count": 8}, "experts"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn scaling"),
    ],
)
def test_keys_that_lie_or_are_not_supported_are_refused(tmp_path: Path, metadata: dict, says: str) -> None:
    path = write(tmp_path / "m.gguf", make("llama"), **metadata)
    with pytest.raises(HermitcrabError, match=says):
        ggml.configuration(open_weights(path))


def test_other_architectures_and_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.add_tensor("blk.0.ssm_in.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = open_weights(tmp_path / "a.gguf")
    with pytest.raises(HermitcrabError, match="'mamba' is not read from GGUF"):
        ggml.configuration(weights)
    with pytest.raises(HermitcrabError, match="no place"):
        ggml.tensor_names(weights)


def test_an_unknown_rope_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama", **CASES["llama3-rope"][1])
    monkeypatch.setattr("test_ggml.llama3_factors", lambda *_: np.linspace(1, 8, 32).astype(np.float32))
    with pytest.raises(HermitcrabError, match="another scaling"):
        ggml.configuration(open_weights(write(tmp_path / "m.gguf", model)))
