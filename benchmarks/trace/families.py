"""Tiny models of a dozen shapes of nine architectures (those without attention: `nets.py`), many seeds of one architecture trained at once.

Every parameter has a leading axis K (the seeds) and every product is a batched one, so K twins see the same rows in the
same order and cost little more than one. `folder_tensors` writes one of them in the layout of its published family.

    suffixes: K seeds, B rows, T positions, D residual width, H heads, G key-value heads, E head width, F neurons, X experts
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import nets
import torch
import torch.nn.functional as F

Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    name: str
    model_type: str
    layers: int = 4
    width: int = 64
    heads: int = 4
    kv_heads: int = 4
    neurons: int = 128
    vocabulary: int = 512
    positions: int = 64
    experts: int = 0
    qkv_bias: bool = False
    tied: bool = False
    widths: tuple[int, ...] = ()  # channels
    side: int = 28  # of an image

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def gated(self) -> bool:
        return self.model_type in ("llama", "qwen2", "mixtral")


FAMILIES = {
    f.name: f
    for f in (
        Family("llama", "llama"),
        Family("llama-gqa", "llama", kv_heads=2, neurons=144),
        Family("qwen", "qwen2", kv_heads=2, qkv_bias=True, tied=True),
        Family("gpt2", "gpt2", neurons=192, tied=True),
        Family("moe", "mixtral", neurons=64, experts=4, layers=3),
        Family("bert", "bert", neurons=192, tied=True),
        Family("llama-deep", "llama", layers=6, width=48, neurons=96),
        Family("cnn", "cnn", layers=3, widths=(24, 48, 96)),
        Family("cnn-small", "cnn", layers=3, widths=(20, 40, 80), neurons=112),
        Family("cnn-speech", "cnn", layers=4, widths=(24, 40, 56, 72), neurons=104, side=40),
        Family("lstm", "lstm", layers=2, width=48, neurons=64),
        Family("gan", "gan", layers=2, widths=(64, 32)),
    )
}
PLAIN = ("cnn", "lstm", "gan")  # types without attention


def initial(family: Family, seeds: list[int]) -> Parameters:
    """The first draw of each seed, each from a generator of its own, stacked."""
    drawn = [_draw(family, torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([d[name] for d in drawn]) for name in drawn[0]}


def _draw(f: Family, generator: torch.Generator) -> Parameters:
    def normal(*shape: int, std: float | None = None) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * (std or shape[-1] ** -0.5)

    p: Parameters = {}
    if f.model_type in PLAIN:
        return nets.draw(f, generator)
    d, biased = f.width, not f.gated
    p["embed"] = normal(f.vocabulary, d, std=0.05)
    if biased:
        p["position"] = normal(f.positions, d, std=0.02)
    for layer in range(f.layers):
        at = f"{layer}."
        rows = {"q": f.heads * f.head, "k": f.kv_heads * f.head, "v": f.kv_heads * f.head, "o": d}
        for name, out in rows.items():
            p[at + name] = normal(out, d if name != "o" else f.heads * f.head)
            if biased or (f.qkv_bias and name != "o"):
                p[at + name + ".b"] = torch.zeros(out)
        for name in ("n1", "n2"):
            p[at + name] = torch.ones(d)
            if biased:
                p[at + name + ".b"] = torch.zeros(d)
        lead = (f.experts,) if f.experts else ()
        if f.experts:
            p[at + "router"] = normal(f.experts, d)
        for name in (["gate"] if f.gated else []) + ["up"]:
            p[at + name] = normal(*lead, f.neurons, d)
        p[at + "down"] = normal(*lead, d, f.neurons)
        if biased:
            p[at + "up.b"], p[at + "down.b"] = torch.zeros(f.neurons), torch.zeros(d)
    p["norm"] = torch.ones(d)
    if biased:
        p["norm.b"] = torch.zeros(d)
    if not f.tied:
        p["head"] = normal(f.vocabulary, d)
    if f.model_type == "bert":
        p["head.dense"], p["head.dense.b"] = normal(d, d), torch.zeros(d)
        p["head.norm"], p["head.norm.b"] = torch.ones(d), torch.zeros(d)
    return p


def linear(x_KBTI: torch.Tensor, w_KOI: torch.Tensor, b_KO: torch.Tensor | None = None) -> torch.Tensor:
    k, b, t, i = x_KBTI.shape
    y = torch.bmm(x_KBTI.reshape(k, b * t, i), w_KOI.transpose(1, 2))
    if b_KO is not None:
        y = y + b_KO[:, None]
    return y.reshape(k, b, t, -1)


def rms(x: torch.Tensor, gain_KD: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain_KD[:, None, None]


def layer_norm(x: torch.Tensor, gain_KD: torch.Tensor, shift_KD: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:]) * gain_KD[:, None, None] + shift_KD[:, None, None]


def rotate(x_KBHTE: torch.Tensor) -> torch.Tensor:
    """Rotary positions as `transformers` pairs them: dimension e with e + E/2."""
    t, e = x_KBHTE.shape[-2:]
    angle = torch.arange(t)[:, None] * 10_000.0 ** (-torch.arange(0, e, 2) / e)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    left, right = x_KBHTE.chunk(2, -1)
    return x_KBHTE * cos + torch.cat([-right, left], -1) * sin


def logits(f: Family, p: Parameters, x: torch.Tensor) -> torch.Tensor:
    """x: tokens (B, T) → (K, B, T, V); for a CNN images (B, 1, S, S) → (K, B, 1, 10)."""
    if f.model_type in PLAIN:
        return nets.logits(f, p, x)
    h = p["embed"][:, x]
    if not f.gated:
        h = h + p["position"][:, None, : x.shape[1]]
    if f.model_type == "bert":
        h = layer_norm(h, p["norm"], p["norm.b"])
    for layer in range(f.layers):
        h = _block(f, p, h, f"{layer}.")
    if f.gated:
        h = rms(h, p["norm"])
    elif f.model_type == "gpt2":
        h = layer_norm(h, p["norm"], p["norm.b"])
    else:
        h = layer_norm(F.gelu(linear(h, p["head.dense"], p["head.dense.b"])), p["head.norm"], p["head.norm.b"])
    return linear(h, p["embed"] if f.tied else p["head"])


def _block(f: Family, p: Parameters, h: torch.Tensor, at: str) -> torch.Tensor:
    norm = (lambda x, n: rms(x, p[at + n])) if f.gated else (lambda x, n: layer_norm(x, p[at + n], p[at + n + ".b"]))
    if f.model_type == "bert":  # norms behind the sum
        h = norm(h + _attention(f, p, h, at), "n1")
        return norm(h + linear(F.gelu(linear(h, p[at + "up"], p[at + "up.b"])), p[at + "down"], p[at + "down.b"]), "n2")
    h = h + _attention(f, p, norm(h, "n1"), at)
    x = norm(h, "n2")
    if f.experts:
        return h + _experts(f, p, x, at)
    if f.gated:
        return h + linear(F.silu(linear(x, p[at + "gate"])) * linear(x, p[at + "up"]), p[at + "down"])
    return h + linear(F.gelu(linear(x, p[at + "up"], p[at + "up.b"])), p[at + "down"], p[at + "down.b"])


def _attention(f: Family, p: Parameters, x: torch.Tensor, at: str) -> torch.Tensor:
    k, b, t, _ = x.shape

    def heads(name: str, count: int) -> torch.Tensor:
        return linear(x, p[at + name], p.get(at + name + ".b")).reshape(k, b, t, count, f.head).transpose(2, 3)

    q, key, value = heads("q", f.heads), heads("k", f.kv_heads), heads("v", f.kv_heads)
    if f.gated:
        q, key = rotate(q), rotate(key)
    repeat = f.heads // f.kv_heads
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 2), value.repeat_interleave(repeat, 2)
    shape = (k * b, f.heads, t, f.head)
    y = F.scaled_dot_product_attention(
        q.reshape(shape), key.reshape(shape), value.reshape(shape), is_causal=f.model_type != "bert"
    )
    y = y.reshape(k, b, f.heads, t, f.head).transpose(2, 3).reshape(k, b, t, -1)
    return linear(y, p[at + "o"], p.get(at + "o.b"))


def _experts(f: Family, p: Parameters, x: torch.Tensor, at: str) -> torch.Tensor:
    share = torch.softmax(linear(x, p[at + "router"]), -1)
    top = share.topk(2, -1)
    weight = torch.zeros_like(share).scatter(-1, top.indices, top.values / top.values.sum(-1, keepdim=True))
    parts = []
    for e in range(f.experts):
        gate, up, down = (p[at + n][:, e] for n in ("gate", "up", "down"))
        parts.append(linear(F.silu(linear(x, gate)) * linear(x, up), down) * weight[..., e : e + 1])
    return sum(parts)


def loss(f: Family, p: Parameters, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of each seed, (K,). Targets of -100 do not count."""
    if f.model_type == "gan":
        return nets.adversarial(f, p, batch)
    x, y = batch
    found = logits(f, p, x)
    k = found.shape[0]
    flat = found.reshape(k, -1, found.shape[-1])
    each = F.cross_entropy(flat.flatten(0, 1), y.reshape(-1).repeat(k), reduction="none", ignore_index=-100)
    return each.reshape(k, -1).sum(1) / (y != -100).sum().clamp(min=1)


def folder_tensors(f: Family, p: Parameters, k: int) -> dict[str, torch.Tensor]:
    """Seed `k` with the tensor names and layouts of its published family."""
    one = {name: value[k].detach().clone().contiguous() for name, value in p.items()}
    if f.model_type in PLAIN:
        return nets.tensors(f, one)
    return {"llama": _llama, "qwen2": _llama, "mixtral": _llama, "gpt2": _gpt2, "bert": _bert}[f.model_type](f, one)


def _llama(f: Family, p: Parameters) -> dict[str, torch.Tensor]:
    out = {"model.embed_tokens.weight": p["embed"], "model.norm.weight": p["norm"]}
    if not f.tied:
        out["lm_head.weight"] = p["head"]
    for layer in range(f.layers):
        at, to = f"{layer}.", f"model.layers.{layer}."
        for name in "qkvo":
            out[f"{to}self_attn.{name}_proj.weight"] = p[at + name]
            if at + name + ".b" in p:
                out[f"{to}self_attn.{name}_proj.bias"] = p[at + name + ".b"]
        out[to + "input_layernorm.weight"], out[to + "post_attention_layernorm.weight"] = p[at + "n1"], p[at + "n2"]
        if f.experts:
            out[to + "block_sparse_moe.gate.weight"] = p[at + "router"]
            for e in range(f.experts):
                for name, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
                    out[f"{to}block_sparse_moe.experts.{e}.{theirs}.weight"] = p[at + name][e].contiguous()
        else:
            for name in ("gate", "up", "down"):
                out[f"{to}mlp.{name}_proj.weight"] = p[at + name]
    return out


def _gpt2(f: Family, p: Parameters) -> dict[str, torch.Tensor]:
    out = {"wte.weight": p["embed"], "wpe.weight": p["position"], "ln_f.weight": p["norm"], "ln_f.bias": p["norm.b"]}
    for layer in range(f.layers):
        at, to = f"{layer}.", f"h.{layer}."
        out[to + "attn.c_attn.weight"] = torch.cat([p[at + n] for n in "qkv"]).T.contiguous()
        out[to + "attn.c_attn.bias"] = torch.cat([p[at + n + ".b"] for n in "qkv"])
        for ours, theirs in (("o", "attn.c_proj"), ("up", "mlp.c_fc"), ("down", "mlp.c_proj")):
            out[f"{to}{theirs}.weight"], out[f"{to}{theirs}.bias"] = p[at + ours].T.contiguous(), p[at + ours + ".b"]
        for ours, theirs in (("n1", "ln_1"), ("n2", "ln_2")):
            out[f"{to}{theirs}.weight"], out[f"{to}{theirs}.bias"] = p[at + ours], p[at + ours + ".b"]
    return out


def _bert(f: Family, p: Parameters) -> dict[str, torch.Tensor]:
    out = {"embeddings.word_embeddings.weight": p["embed"], "embeddings.position_embeddings.weight": p["position"],
           "embeddings.LayerNorm.weight": p["norm"], "embeddings.LayerNorm.bias": p["norm.b"]}  # fmt: skip
    for layer in range(f.layers):
        at, to = f"{layer}.", f"encoder.layer.{layer}."
        for ours, theirs in (("q", "attention.self.query"), ("k", "attention.self.key"), ("v", "attention.self.value"),
                             ("o", "attention.output.dense"), ("up", "intermediate.dense"), ("down", "output.dense"),
                             ("n1", "attention.output.LayerNorm"), ("n2", "output.LayerNorm")):  # fmt: skip
            out[f"{to}{theirs}.weight"], out[f"{to}{theirs}.bias"] = p[at + ours], p[at + ours + ".b"]
    for ours, theirs in (("head.dense", "dense"), ("head.norm", "LayerNorm")):
        out[f"cls.predictions.transform.{theirs}.weight"] = p[ours]
        out[f"cls.predictions.transform.{theirs}.bias"] = p[ours + ".b"]
    return out


def config(f: Family) -> dict[str, object]:
    """`config.json` of the family; what no published family has is left out."""
    common = {"model_type": f.model_type, "vocab_size": f.vocabulary}
    if f.model_type in PLAIN:
        return {"model_type": f.model_type}
    if f.model_type == "gpt2":
        return common | {"n_embd": f.width, "n_head": f.heads, "n_layer": f.layers, "n_positions": f.positions,
                         "n_inner": f.neurons, "architectures": ["GPT2LMHeadModel"]}  # fmt: skip
    names = {
        "llama": "LlamaForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "mixtral": "MixtralForCausalLM",
        "bert": "BertForMaskedLM",
    }
    common |= {"hidden_size": f.width, "num_attention_heads": f.heads, "num_hidden_layers": f.layers,
               "intermediate_size": f.neurons, "max_position_embeddings": f.positions, "architectures": [names[f.model_type]]}  # fmt: skip
    if f.gated:
        common |= {"num_key_value_heads": f.kv_heads, "head_dim": f.head, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
                   "tie_word_embeddings": f.tied}  # fmt: skip
    if f.experts:
        common |= {"num_local_experts": f.experts, "num_experts_per_tok": 2}
    return common


def upcycled(f: Family, p: Parameters, experts: int = 4) -> tuple[Family, Parameters]:
    """A mixture of experts, each of which begins as the dense model's MLP; the router is drawn from seed 0."""
    sparse = replace(f, name="moe-upcycled", model_type="mixtral", experts=experts)
    out = dict(p)
    generator = torch.Generator().manual_seed(0)
    for layer in range(f.layers):
        at = f"{layer}."
        k = p[at + "up"].shape[0]
        out[at + "router"] = torch.randn(k, experts, f.width, generator=generator) / math.sqrt(f.width)
        for name in ("gate", "up", "down"):
            out[at + name] = p[at + name][:, None].repeat(1, experts, 1, 1)
    return sparse, out
