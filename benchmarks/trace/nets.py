"""The zoo's models without attention: convolutional classifiers, a recurrent language model, a generator with its critic.

As in `families.py` every parameter has a leading axis K (the seeds), and `draw`, `logits`, `loss` and `tensors` are what is
asked of a family. Layouts are PyTorch's: a transposed convolution is (in, out, k, k), gates of an LSTM stand one behind another.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

Parameters = dict[str, torch.Tensor]
LATENT, CRITIC = 40, (32, 48)


def draw(f: Any, generator: torch.Generator) -> Parameters:
    def normal(*shape: int, fan: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * fan**-0.5

    p: Parameters = {}
    if f.model_type == "cnn":
        last, side = 1, f.side
        for i, width in enumerate(f.widths):
            p[f"conv{i}"] = normal(width, last, 3, 3, fan=last * 9) * 1.4
            p[f"conv{i}.b"] = torch.zeros(width)
            p[f"gain{i}"], p[f"shift{i}"] = torch.ones(width), torch.zeros(width)
            last, side = width, side // 2
        inner = last * side * side
        p["fc"], p["fc.b"] = normal(f.neurons, inner, fan=inner), torch.zeros(f.neurons)
        p["out"], p["out.b"] = normal(10, f.neurons, fan=f.neurons), torch.zeros(10)
    elif f.model_type == "lstm":
        h = f.neurons
        p["embed"] = torch.randn(f.vocabulary, f.width, generator=generator) * 0.3
        for i in range(f.layers):
            inner = f.width if i == 0 else h
            p[f"ih{i}"], p[f"hh{i}"] = normal(4 * h, inner, fan=h), normal(4 * h, h, fan=h)
            p[f"b{i}"] = torch.zeros(4 * h)
        p["head"] = normal(f.vocabulary, h, fan=h)
    else:
        first, second = f.widths
        p["fc"] = normal(first * 49, LATENT, fan=LATENT)
        p["conv0"], p["conv1"] = normal(first, second, 4, 4, fan=first * 4), normal(second, 1, 4, 4, fan=second * 4)
        for i, width in enumerate(f.widths):
            p[f"gain{i}"], p[f"shift{i}"] = torch.ones(width), torch.zeros(width)
        a, b = CRITIC
        p["d.conv0"], p["d.conv1"] = normal(a, 1, 4, 4, fan=16), normal(b, a, 4, 4, fan=a * 16)
        p["d.out"] = normal(1, b * 49, fan=b * 49)
    return p


def _linear(x_KBI: torch.Tensor, w_KOI: torch.Tensor, b_KO: torch.Tensor | None = None) -> torch.Tensor:
    y = torch.bmm(x_KBI, w_KOI.transpose(1, 2))
    return y if b_KO is None else y + b_KO[:, None]


def _norm(h: torch.Tensor, p: Parameters, i: int) -> torch.Tensor:
    h = F.instance_norm(h)
    return h * p[f"gain{i}"].flatten()[:, None, None] + p[f"shift{i}"].flatten()[:, None, None]


def logits(f: Any, p: Parameters, x: torch.Tensor) -> torch.Tensor:
    """Images (B, 1, S, S) → (K, B, 1, 10), or tokens (B, T) → (K, B, T, V)."""
    return _cnn(f, p, x) if f.model_type == "cnn" else _lstm(f, p, x)


def _cnn(f: Any, p: Parameters, x: torch.Tensor) -> torch.Tensor:
    k, b = p["out"].shape[0], x.shape[0]
    h = x.repeat(1, k, 1, 1)  # groups are seeds
    for i in range(len(f.widths)):
        h = F.conv2d(h, p[f"conv{i}"].flatten(0, 1), p[f"conv{i}.b"].flatten(), padding=1, groups=k)
        h = F.max_pool2d(F.relu(_norm(h, p, i)), 2)
    h = h.reshape(b, k, -1).transpose(0, 1)
    return _linear(F.relu(_linear(h, p["fc"], p["fc.b"])), p["out"], p["out.b"])[:, :, None]


def _lstm(f: Any, p: Parameters, x: torch.Tensor) -> torch.Tensor:
    h = p["embed"][:, x]  # (K, B, T, D)
    k, b, t, _ = h.shape
    for i in range(f.layers):
        given = _linear(h.reshape(k, b * t, -1), p[f"ih{i}"], p[f"b{i}"]).reshape(k, b, t, -1)
        state = cell = torch.zeros(k, b, f.neurons)
        out = []
        for step in range(t):
            i_, f_, g, o = (given[:, :, step] + _linear(state, p[f"hh{i}"])).chunk(4, -1)
            cell = torch.sigmoid(f_ + 1) * cell + torch.sigmoid(i_) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
            out.append(state)
        h = torch.stack(out, 2)
    return _linear(h.reshape(k, b * t, -1), p["head"]).reshape(k, b, t, -1)


def generated(f: Any, p: Parameters, z: torch.Tensor) -> torch.Tensor:
    """Latents (B, Z) → images (B, K, 28, 28), one channel a seed."""
    k, b = p["fc"].shape[0], z.shape[0]
    h = _linear(z.expand(k, -1, -1), p["fc"]).transpose(0, 1).reshape(b, k * f.widths[0], 7, 7)
    h = F.conv_transpose2d(F.relu(_norm(h, p, 0)), p["conv0"].flatten(0, 1), stride=2, padding=1, groups=k)
    h = F.conv_transpose2d(F.relu(_norm(h, p, 1)), p["conv1"].flatten(0, 1), stride=2, padding=1, groups=k)
    return torch.tanh(h)


def _critic(p: Parameters, x: torch.Tensor, frozen: bool) -> torch.Tensor:
    """(B, K, 28, 28) → (K, B)"""
    w = {n: v.detach() if frozen else v for n, v in p.items() if n.startswith("d.")}
    k, b = w["d.out"].shape[0], x.shape[0]
    h = F.leaky_relu(F.conv2d(x, w["d.conv0"].flatten(0, 1), stride=2, padding=1, groups=k), 0.2)
    h = F.leaky_relu(F.conv2d(h, w["d.conv1"].flatten(0, 1), stride=2, padding=1, groups=k), 0.2)
    return _linear(h.reshape(b, k, -1).transpose(0, 1), w["d.out"])[:, :, 0]


def adversarial(f: Any, p: Parameters, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Both players' losses in one sum, (K,); neither sends gradients into the other (Goodfellow et al. 2014)."""
    images, z = batch
    fake = generated(f, p, z)
    real = images.clamp(-1, 1).expand(-1, fake.shape[1], -1, -1)
    critic = F.softplus(-_critic(p, real, False)) + F.softplus(_critic(p, fake.detach(), False))
    return (critic + F.softplus(-_critic(p, fake, True))).mean(1)


def tensors(f: Any, p: Parameters) -> Parameters:
    """Of one seed, under the names that PyTorch modules give."""
    names = {"embed": "embedding.weight", "head": "head.weight", "fc": "classifier.0.weight", "fc.b": "classifier.0.bias",
             "out": "classifier.1.weight", "out.b": "classifier.1.bias"}  # fmt: skip
    if f.model_type == "gan":
        names = {"fc": "project.weight", "conv0": "up.0.weight", "conv1": "up.1.weight"}
    for i in range(max(len(f.widths), f.layers)):
        names |= {f"ih{i}": f"lstm.weight_ih_l{i}", f"hh{i}": f"lstm.weight_hh_l{i}", f"b{i}": f"lstm.bias_ih_l{i}"}
        names |= {f"gain{i}": f"norms.{i}.weight", f"shift{i}": f"norms.{i}.bias"}
        if f.model_type == "cnn":
            names |= {f"conv{i}": f"features.{i}.weight", f"conv{i}.b": f"features.{i}.bias"}
    return {names[n]: v for n, v in p.items() if not n.startswith("d.")}
