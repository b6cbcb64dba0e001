"""Models for the tests of trace, made with numpy alone in milliseconds: a first draw, and what is done to it afterwards.

A drawn model is enough for most promises (symmetries, launderings, formats); what must hold for trained ones is tested on the
nano zoo (`test_zoo.py`), which trains.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]
SHAPE = {"layers": 3, "width": 48, "heads": 4, "kv": 2, "neurons": 112, "vocabulary": 160}


def llama(seed: int, **shape: int) -> Tensors:
    """A llama-like draw with gains off one and neurons of unequal strength, as training leaves them."""
    s = {**SHAPE, **shape}
    r = np.random.default_rng(seed)
    d, h, e = s["width"], s["neurons"], s["width"] // s["heads"]

    def draw(*size: int) -> np.ndarray:
        return r.standard_normal(size) / np.sqrt(size[-1])

    out = {"model.embed_tokens.weight": draw(s["vocabulary"], d), "lm_head.weight": draw(s["vocabulary"], d),
           "model.norm.weight": 1 + 0.2 * r.standard_normal(d)}  # fmt: skip
    for i in range(s["layers"]):
        at = f"model.layers.{i}."
        strength = np.exp(0.4 * r.standard_normal(h))
        out |= {
            at + "self_attn.q_proj.weight": draw(d, d), at + "self_attn.k_proj.weight": draw(s["kv"] * e, d),
            at + "self_attn.v_proj.weight": draw(s["kv"] * e, d), at + "self_attn.o_proj.weight": draw(d, d),
            at + "mlp.gate_proj.weight": draw(h, d) * strength[:, None], at + "mlp.up_proj.weight": draw(h, d) * strength[:, None],
            at + "mlp.down_proj.weight": draw(d, h) * strength,
            at + "input_layernorm.weight": 1 + 0.2 * r.standard_normal(d),
            at + "post_attention_layernorm.weight": 1 + 0.2 * r.standard_normal(d),
        }  # fmt: skip
    return {k: v.astype(np.float32) for k, v in out.items()}


def gpt2(seed: int, layers: int = 3, width: int = 48, neurons: int = 144) -> Tensors:
    r = np.random.default_rng(seed)

    def draw(*size: int) -> np.ndarray:
        return (r.standard_normal(size) / np.sqrt(width)).astype(np.float32)

    out = {
        "wte.weight": draw(160, width),
        "wpe.weight": draw(64, width),
        "ln_f.weight": np.ones(width, np.float32),
        "ln_f.bias": draw(width),
    }
    for i in range(layers):
        at = f"h.{i}."
        out |= {
            at + "attn.c_attn.weight": draw(width, 3 * width),
            at + "attn.c_attn.bias": draw(3 * width),
            at + "attn.c_proj.weight": draw(width, width),
            at + "attn.c_proj.bias": draw(width),
            at + "mlp.c_fc.weight": draw(width, neurons),
            at + "mlp.c_fc.bias": draw(neurons),
            at + "mlp.c_proj.weight": draw(neurons, width),
            at + "mlp.c_proj.bias": draw(width),
            at + "ln_1.weight": np.ones(width, np.float32),
            at + "ln_1.bias": draw(width),
            at + "ln_2.weight": np.ones(width, np.float32),
            at + "ln_2.bias": draw(width),
        }
    return out


def cnn(seed: int) -> Tensors:
    r = np.random.default_rng(seed)
    out, last = {}, 1
    for i, width in enumerate((24, 48, 96)):
        out[f"features.{i}.weight"] = r.standard_normal((width, last, 3, 3)) / np.sqrt(last * 9)
        out[f"features.{i}.bias"] = 0.1 * r.standard_normal(width)
        last = width
    out["classifier.0.weight"], out["classifier.0.bias"] = r.standard_normal((128, 96 * 9)) / 30, r.standard_normal(128)
    out["classifier.1.weight"], out["classifier.1.bias"] = r.standard_normal((10, 128)) / 11, r.standard_normal(10)
    return {k: v.astype(np.float32) for k, v in out.items()}


def changed(tensors: Tensors, size: float, seed: int = 99) -> Tensors:
    """Every matrix moved by `size` times its spread, as training on does."""
    r = np.random.default_rng(seed)
    return {
        k: (v + size * v.std() * r.standard_normal(v.shape)).astype(np.float32) if v.ndim > 1 else v
        for k, v in tensors.items()
    }


def write(folder: Path, tensors: Tensors, config: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


CONFIG = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
