"""A GGUF file in transformers' words: its configuration and the names of its tensors. Torch-free.

llama.cpp renames tensors, writes the configuration under keys of its own, and reorders the rows of llama's query and
key projections for its rotary embedding; all three are undone here. An architecture that is not in `FAMILIES`, a key
that would change what the model computes, or a tensor without a place is refused rather than guessed at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import Weights

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class Family:
    model_type: str
    architecture: str
    paired_rows: bool = False
    """Query and key rows are reordered: llama.cpp's rotary embedding pairs neighbors, transformers' pairs halves."""


FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", paired_rows=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM"),
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"


def family(weights: Weights) -> Family:
    name = weights.metadata.get("general.architecture")
    if name not in FAMILIES:
        raise HermitcrabError(
            f"{weights.path}: the architecture {name!r} is not read from GGUF (only {', '.join(FAMILIES)}); "
            "use the model's release in safetensors"
        )
    return FAMILIES[name]


def configuration(weights: Weights) -> dict[str, Any]:
    """The transformers configuration that a GGUF file describes, with its `model_type`.

    Raises:
        HermitcrabError: a key that is missing, of another type, or not supported.
    """
    found, kind, keys = family(weights), weights.metadata["general.architecture"], _Keys(weights)
    layers, heads = keys.count("block_count"), keys.count("attention.head_count")
    hidden, embedding = keys.count("embedding_length"), weights.info("token_embd.weight")
    if layers > len(weights.tensors) or heads > hidden:
        raise HermitcrabError(f"{weights.path}: {kind}.block_count or head_count is larger than the file allows")
    head_size = keys.count("attention.key_length", hidden // heads)
    if keys.count("rope.dimension_count", head_size) != head_size or keys.count("expert_count", 0, least=0):
        raise HermitcrabError(f"{weights.path}: partial rotary embeddings and experts are not read from GGUF")
    config = {
        "model_type": found.model_type,
        "architectures": [found.architecture],
        "hidden_size": hidden,
        "intermediate_size": keys.count("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": keys.count("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(weights, keys, head_size),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in weights.tensors,
    }
    if found.model_type != "qwen2":  # whose biases are part of the architecture
        config["attention_bias"] = "blk.0.attn_q.bias" in weights.tensors
    if found.model_type == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in weights.tensors
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = weights.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if type(token) is int and 0 <= token < embedding.shape[0]:
            config[f"{ours}_token_id"] = token
    return config


class _Keys:
    """Numbers of the architecture's own keys, checked."""

    def __init__(self, weights: Weights):
        self.weights, self.kind = weights, weights.metadata["general.architecture"]

    def _value(self, name: str, default: Any) -> Any:
        value = self.weights.metadata.get(f"{self.kind}.{name}", default)
        if value is None:
            raise HermitcrabError(f"{self.weights.path}: has no metadata key `{self.kind}.{name}`")
        return value

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self._value(name, default)
        if type(value) is not int or not least <= value < 1 << 31:
            raise HermitcrabError(f"{self.weights.path}: `{self.kind}.{name}` is no count. Received: {str(value)[:60]}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A float32 of the file as the decimal number that was meant (1e-05, not 9.999999747378752e-06)."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not np.isfinite(np.float32(value)) or value <= 0:
            raise HermitcrabError(f"{self.weights.path}: `{self.kind}.{name}` is no number. Received: {value!r:.60}")
        return float(str(np.float32(value)))

    def text(self, name: str, default: str) -> str:
        return str(self._value(name, default))


def _rope(weights: Weights, keys: _Keys, head_size: int) -> dict[str, Any]:
    """Rotary parameters. Llama 3's scaling stands in the file only as a table of divisors: found again and compared."""
    theta, scaling = keys.number("rope.freq_base", 10_000.0), keys.text("rope.scaling.type", "none")
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": keys.number("rope.scaling.factor")}
    if scaling != "none":
        raise HermitcrabError(f"{weights.path}: {scaling} scaling of rotary embeddings is not read from GGUF")
    if ROPE_FACTORS not in weights.tensors:
        return {"rope_type": "default", "rope_theta": theta}
    divisors = weights.read(ROPE_FACTORS).astype(np.float64)
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": float(divisors.max()), **LLAMA3_ROPE}
    if divisors.shape != (head_size // 2,) or not np.allclose(divisors, _llama3_divisors(rope, head_size), rtol=1e-4):
        raise HermitcrabError(f"{weights.path}: {ROPE_FACTORS} holds another scaling than Llama 3's; not supported")
    return rope


def _llama3_divisors(rope: dict[str, Any], head_size: int) -> np.ndarray:
    """What Llama 3 divides each frequency by. arXiv:2407.21783; transformers' `_compute_llama3_parameters`."""
    frequency = rope["rope_theta"] ** -(np.arange(0, head_size, 2) / head_size)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / rope["factor"] + smooth)


def tensor_names(weights: Weights) -> dict[str, str]:
    """transformers' name → the file's name, for every tensor that is a parameter.

    Raises:
        HermitcrabError: for a tensor that has no place in the model.
    """
    names = {}
    for name in weights.tensors:
        if name == ROPE_FACTORS:
            continue
        match = re.fullmatch(r"(?:blk\.(\d{1,5})\.)?([a-z_0-9]+)\.(weight|bias)", name)
        module = match and (LAYER if match[1] else WHOLE).get(match[2])
        if not match or not module:
            raise HermitcrabError(f"{weights.path}: the tensor `{name}` has no place in this architecture")
        layer = f"model.layers.{int(match[1])}." if match[1] else ""
        names[f"{layer}{module}.{match[3]}"] = name
    return names


def read_tensor(weights: Weights, name: str, config: dict[str, Any]) -> np.ndarray:
    """A tensor of the file in the row order that transformers uses; float32."""
    values = weights.read(name)
    if family(weights).paired_rows and (match := re.search(r"\.attn_([qk])\.", name)):
        heads = config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
        if values.shape[0] % (2 * heads):
            raise HermitcrabError(f"{weights.path}: `{name}` has {values.shape[0]} rows, which are not {heads} heads")
        paired = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(values.shape)
    return values
