"""What people do to weights: quantize, prune, merge, cut, launder. Everything works on one model's parameters by the names of
`families.py` (no leading axis) and returns new ones with the family that they now belong to.

Launderings keep the function: residual rotation with folded gains (RMSNorm) or residual permutation (LayerNorm), permuted
and sign-flipped neurons, permuted heads, any invertible mixing of value channels, rotated rotary pairs of query and key.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from families import PLAIN, Family, config, folder_tensors
from safetensors.torch import save_file

Params = dict[str, np.ndarray]
Made = tuple[Family, Params]


def one(stacked: dict[str, torch.Tensor], k: int) -> Params:
    return {name: value[k].numpy().astype(np.float64) for name, value in stacked.items()}


def matrices(p: Params) -> list[str]:
    return [n for n, v in p.items() if v.ndim >= 2]


def quantize(p: Params, bits: int, group: int = 32) -> Params:
    """Symmetric rounding in groups along the input axis."""
    out = dict(p)
    for name in matrices(p):
        flat = p[name].reshape(-1)
        pad = -len(flat) % group
        x = np.pad(flat, (0, pad)).reshape(-1, group)
        top = 2 ** (bits - 1) - 1
        scale = np.maximum(np.abs(x).max(1, keepdims=True) / top, 1e-12)
        out[name] = (
            (np.clip(np.round(x / scale), -top - 1, top) * scale).reshape(-1)[: len(flat)].reshape(p[name].shape)
        )
    return out


def prune(p: Params, share: float) -> Params:
    """Zero the smallest weights of each matrix."""
    out = dict(p)
    for name in matrices(p):
        limit = np.quantile(np.abs(p[name]), share)
        out[name] = np.where(np.abs(p[name]) < limit, 0.0, p[name])
    return out


def noise(p: Params, size: float, seed: int) -> Params:
    r = np.random.default_rng(seed)
    return {n: v + size * v.std() * r.standard_normal(v.shape) if v.ndim >= 2 else v for n, v in p.items()}


def low_rank(p: Params, rank: int, seed: int, size: float = 0.3) -> Params:
    """A merged adapter on attention and MLP: a change of the given rank and relative size."""
    r = np.random.default_rng(seed)
    out = dict(p)
    for name in matrices(p):
        if name[0].isdigit() and p[name].ndim == 2:
            rows, columns = p[name].shape
            delta = r.standard_normal((rows, rank)) @ r.standard_normal((rank, columns))
            out[name] = p[name] + delta * size * np.linalg.norm(p[name]) / np.linalg.norm(delta)
    return out


def merge(a: Params, b: Params, weight: float) -> Params:
    """`weight` of `a`, the rest of `b`."""
    return {n: weight * a[n] + (1 - weight) * b[n] for n in b}


def slerp(a: Params, b: Params, weight: float) -> Params:
    out = {}
    for n in b:
        x, y = a[n].ravel(), b[n].ravel()
        cosine = np.clip(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12), -1, 1)
        angle = np.arccos(cosine)
        if angle < 1e-3 or not np.isfinite(angle):
            out[n] = weight * a[n] + (1 - weight) * b[n]
        else:
            mixed = (np.sin(weight * angle) * x + np.sin((1 - weight) * angle) * y) / np.sin(angle)
            out[n] = mixed.reshape(a[n].shape)
    return out


def dare(child: Params, base: Params, keep: float, seed: int) -> Params:
    """The difference to the base dropped at random and what is left scaled up (DARE)."""
    r = np.random.default_rng(seed)
    return {n: base[n] + (r.random(base[n].shape) < keep) * (child[n] - base[n]) / keep for n in base}


def layers(f: Family, p: Params, order: list[int]) -> Made:
    """Layers taken from `p` in this order: dropped, doubled, shuffled."""
    out = {n: v for n, v in p.items() if not n[0].isdigit()}
    for to, at in enumerate(order):
        out |= {f"{to}.{n.split('.', 1)[1]}": v for n, v in p.items() if n.startswith(f"{at}.")}
    return replace(f, layers=len(order)), out


def narrow(f: Family, p: Params, share: float, width: int | None = None) -> Made:
    """Only the strongest neurons of each layer, and the strongest residual coordinates."""
    out = dict(p)
    kept = int(f.neurons * share)
    for layer in range(f.layers):
        at = f"{layer}."
        strength = np.linalg.norm(p[at + "up"], axis=1) * np.linalg.norm(p[at + "down"], axis=0)
        rows = np.sort(np.argsort(-strength)[:kept])
        for name in ("gate", "up", "up.b"):
            if at + name in p:
                out[at + name] = p[at + name][rows]
        out[at + "down"] = p[at + "down"][:, rows]
    made = replace(f, neurons=kept)
    if width is None:
        return made, out
    coordinates = np.sort(np.argsort(-np.linalg.norm(p["embed"], axis=0))[:width])
    for name, v in out.items():
        stem = name.split(".", 1)[1] if name[0].isdigit() else name
        if stem in ("o", "down"):
            out[name] = v[coordinates]
        elif v.ndim == 2:
            out[name] = v[:, coordinates]
        elif stem in ("n1", "n2", "norm"):
            out[name] = v[coordinates]
    return replace(made, width=width), out


def launder(f: Family, p: Params, seed: int, what: str = "all") -> Params:
    """Relabeled so that it computes the same. `what`: all, neurons, heads, residual or a sum such as `neurons+residual`."""
    r = np.random.default_rng(seed)
    out = {n: np.array(v) for n, v in p.items()}
    if f.model_type in PLAIN:
        {"cnn": _channels, "lstm": _gates, "gan": _generator}[f.model_type](out, r)
        return out
    chosen = {"neurons", "heads", "residual"} if what == "all" else set(what.split("+"))
    if "neurons" in chosen:
        _neurons(f, out, r)
    if "heads" in chosen:
        _heads(f, out, r)
    if "residual" in chosen:
        _residual(f, out, r)
    return out


def _channels(p: Params, r: np.random.Generator) -> None:
    """Channels and neurons of the CNN in another order."""
    before, i = np.arange(p["conv0"].shape[1]), 0
    while f"conv{i}" in p:
        order = r.permutation(len(p[f"conv{i}"]))
        p[f"conv{i}"] = p[f"conv{i}"][order][:, before]
        for name in (f"conv{i}.b", f"gain{i}", f"shift{i}"):
            p[name] = p[name][order]
        before, i = order, i + 1
    order = r.permutation(len(p["fc"]))
    places = p["fc"].reshape(len(order), len(before), -1)
    p["fc"], p["fc.b"] = places[order][:, before].reshape(len(order), -1), p["fc.b"][order]
    p["out"] = p["out"][:, order]


def _gates(p: Params, r: np.random.Generator) -> None:
    """Embedding coordinates and hidden units of each recurrent layer, all four gates of a unit together."""
    before, i = r.permutation(p["embed"].shape[1]), 0
    p["embed"] = p["embed"][:, before]
    while f"ih{i}" in p:
        units = p[f"hh{i}"].shape[1]
        order = r.permutation(units)
        rows = np.concatenate([order + gate * units for gate in range(4)])
        p[f"ih{i}"] = p[f"ih{i}"][rows][:, before]
        p[f"hh{i}"], p[f"b{i}"] = p[f"hh{i}"][rows][:, order], p[f"b{i}"][rows]
        before, i = order, i + 1
    p["head"] = p["head"][:, before]


def _generator(p: Params, r: np.random.Generator) -> None:
    """Channels of a generator; latents and pixels keep their places."""
    first, second = (r.permutation(p[f"conv{i}"].shape[0]) for i in range(2))
    places = len(p["fc"]) // len(first)
    p["fc"] = p["fc"].reshape(len(first), places, -1)[first].reshape(len(p["fc"]), -1)
    p["conv0"], p["conv1"] = p["conv0"][first][:, second], p["conv1"][second]
    for i, order in enumerate((first, second)):
        p[f"gain{i}"], p[f"shift{i}"] = p[f"gain{i}"][order], p[f"shift{i}"][order]


def _neurons(f: Family, p: Params, r: np.random.Generator) -> None:
    for layer in range(f.layers):
        at = f"{layer}."
        experts = range(f.experts) if f.experts else [slice(None)]
        for e in experts:
            order = r.permutation(f.neurons)
            signs = r.choice([-1.0, 1.0], f.neurons) if f.gated else np.ones(f.neurons)
            scale = np.exp(0.3 * r.standard_normal(f.neurons)) * signs if f.gated else signs
            if f.experts:
                p[at + "gate"][e] = p[at + "gate"][e][order]
                p[at + "up"][e] = p[at + "up"][e][order] * scale[:, None]
                p[at + "down"][e] = p[at + "down"][e][:, order] / scale
                continue
            if f.gated:
                p[at + "gate"] = p[at + "gate"][order]
            p[at + "up"] = p[at + "up"][order] * scale[:, None]
            p[at + "down"] = p[at + "down"][:, order] / scale
            if at + "up.b" in p:
                p[at + "up.b"] = p[at + "up.b"][order]
        if f.experts:
            order = r.permutation(f.experts)
            for name in ("gate", "up", "down", "router"):
                p[at + name] = p[at + name][order]


def _heads(f: Family, p: Params, r: np.random.Generator) -> None:
    e, group = f.head, f.heads // f.kv_heads
    for layer in range(f.layers):
        at = f"{layer}."
        kv = r.permutation(f.kv_heads)
        queries = np.concatenate([g * group + r.permutation(group) for g in kv])
        rows = lambda heads: np.concatenate([np.arange(h * e, (h + 1) * e) for h in heads])  # noqa: E731
        for name, heads in (("q", queries), ("k", kv), ("v", kv)):
            p[at + name] = p[at + name][rows(heads)]
            if at + name + ".b" in p:
                p[at + name + ".b"] = p[at + name + ".b"][rows(heads)]
        p[at + "o"] = p[at + "o"][:, rows(queries)]
        for g in range(f.kv_heads):
            mix = np.linalg.qr(r.standard_normal((e, e)))[0] @ np.diag(np.exp(0.3 * r.standard_normal(e)))
            at_v = slice(g * e, (g + 1) * e)
            p[at + "v"][at_v] = mix @ p[at + "v"][at_v]
            if at + "v.b" in p:
                p[at + "v.b"][at_v] = mix @ p[at + "v.b"][at_v]
            turn = _pair_rotation(e, r) if f.gated else np.linalg.qr(r.standard_normal((e, e)))[0]
            p[at + "k"][at_v] = turn @ p[at + "k"][at_v]
            if at + "k.b" in p:
                p[at + "k.b"][at_v] = turn @ p[at + "k.b"][at_v]
            for h in range(g * group, (g + 1) * group):
                at_q = slice(h * e, (h + 1) * e)
                p[at + "q"][at_q] = turn @ p[at + "q"][at_q]
                if at + "q.b" in p:
                    p[at + "q.b"][at_q] = turn @ p[at + "q.b"][at_q]
                p[at + "o"][:, at_q] = p[at + "o"][:, at_q] @ np.linalg.inv(mix)


def _pair_rotation(e: int, r: np.random.Generator) -> np.ndarray:
    turn = np.zeros((e, e))
    for j in range(e // 2):
        angle = r.uniform(0, 2 * np.pi)
        i = j + e // 2
        turn[j, j] = turn[i, i] = np.cos(angle)
        turn[j, i], turn[i, j] = -np.sin(angle), np.sin(angle)
    return turn


def _residual(f: Family, p: Params, r: np.random.Generator) -> None:
    d = f.width
    if not f.gated:
        order = r.permutation(d)
        for name, v in p.items():
            stem = name.split(".", 1)[1] if name[0].isdigit() else name
            if stem in ("q", "k", "v", "up", "embed", "position", "head"):
                p[name] = v[:, order]
            elif stem in ("o", "down", "o.b", "down.b", "n1", "n1.b", "n2", "n2.b", "norm", "norm.b"):
                p[name] = v[order]
            elif stem == "head.dense":
                p[name] = v[order][:, order]
            elif stem in ("head.dense.b", "head.norm", "head.norm.b"):
                p[name] = v[order]
        return
    turn = np.linalg.qr(r.standard_normal((d, d)))[0]
    for layer in range(f.layers):
        at = f"{layer}."
        for name in ("q", "k", "v"):
            p[at + name] = (p[at + name] * p[at + "n1"]) @ turn
        for name in ("gate", "up", "router"):
            if at + name in p:
                p[at + name] = (p[at + name] * p[at + "n2"]) @ turn
        p[at + "o"] = turn.T @ p[at + "o"]
        p[at + "down"] = (
            turn.T @ p[at + "down"] if p[at + "down"].ndim == 2 else np.einsum("ij,ejh->eih", turn.T, p[at + "down"])
        )
        p[at + "n1"], p[at + "n2"] = np.ones(d), np.ones(d)
    if f.tied:  # the last gain cannot be folded into a tied head: the head leaves the embedding
        p["head"] = (p["embed"] * p["norm"]) @ turn
    else:
        p["head"] = (p["head"] * p["norm"]) @ turn
    p["embed"], p["norm"] = p["embed"] @ turn, np.ones(d)


def write(
    folder: Path, f: Family, p: Params, tokenizer: Path | None = None, dtype: torch.dtype = torch.float32
) -> Path:
    """A model folder as its family publishes it."""
    folder.mkdir(parents=True, exist_ok=True)
    if f.tied and "head" in p:
        f = replace(f, tied=False)
    stacked = {n: torch.tensor(np.ascontiguousarray(v)).to(dtype)[None] for n, v in p.items()}
    save_file(folder_tensors(f, stacked, 0), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(f)))
    if tokenizer is not None and tokenizer.is_file():
        shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder


def rename(source: Path, target: Path, seed: int) -> Path:
    """The same tensors under names that say nothing, shuffled, without configuration or tokenizer."""
    from safetensors.torch import load_file

    r = np.random.default_rng(seed)
    tensors = load_file(source / "model.safetensors")
    names = [f"p{i:05d}" for i in r.permutation(len(tensors))]
    target.mkdir(parents=True, exist_ok=True)
    save_file(dict(zip(names, tensors.values(), strict=True)), target / "model.safetensors")
    return target


def scrambled(f: Family, p: Params, seed: int) -> Params:
    """The vocabulary in another order."""
    order = np.random.default_rng(seed).permutation(f.vocabulary)
    return {n: v[order] if n in ("embed", "head") else v for n, v in p.items()}
