"""Magnitude: the smallest numbers of the matrices become zero and stay zero while the rest heals.

Han et al. 2015, arXiv:1506.02626 (magnitude, then training on); Zhu & Gupta 2017, arXiv:1710.01878 (masks); Mishra et al. 2021,
arXiv:2104.08378 (2:4: two of four neighbors along the input, the form that sparse tensor cores read).

A zero in a dense file takes as many bytes as any other number: what other forms would save is told, and the file's size as it is.
"""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress

CHUNK = 1 << 22


def matrices(model: Any) -> dict[str, nn.Parameter]:
    """What is pruned: weights of linear layers and convolutions, by name. Embeddings and the output head of a language model are
    tables of words, mostly one and the same, and stay whole."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module is not head
    }


@torch.no_grad()
def prune(weights: dict[str, nn.Parameter], sparsity: float, over: str) -> dict[str, int]:
    """Zero the smallest numbers, in place; how many are zero by name.

    Args:
        over: `tensor`: the share in every matrix; `model`: over all of them together, one threshold.

    Exactly round(share * numbers) go: of equal magnitudes those that stand first.
    """
    if over == "tensor":
        for weight in weights.values():
            _zero_smallest(weight, round(sparsity * weight.numel()))
    else:
        joined = torch.cat([w.detach().abs().float().flatten() for w in weights.values()])
        gone = torch.zeros_like(joined, dtype=torch.bool)
        gone[_smallest(joined, round(sparsity * len(joined)))] = True
        for weight, part in zip(weights.values(), gone.split([w.numel() for w in weights.values()]), strict=True):
            weight[part.view_as(weight)] = 0
    return {name: int((weight == 0).sum()) for name, weight in weights.items()}


def _smallest(magnitude: torch.Tensor, count: int) -> torch.Tensor:
    return magnitude.sort(stable=True).indices[:count]


def _zero_smallest(weight: nn.Parameter, count: int) -> None:
    gone = _smallest(weight.detach().abs().float().flatten(), count)
    weight.view(-1)[gone] = 0


@torch.no_grad()
def prune_2_of_4(weights: dict[str, nn.Parameter]) -> tuple[dict[str, int], list[str]]:
    """Zero the two smallest of each four neighbors along the input, in place; zeros by name, and the names that stay dense because
    their inputs cannot be cut into fours."""
    zeros, dense = {}, []
    for name, weight in weights.items():
        if weight.shape[1:].numel() % 4:
            dense.append(name)
            continue
        fours = weight.detach().abs().float().reshape(-1, 4)
        gone = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, fours.sort(stable=True).indices[:, :2], True)
        weight[gone.view_as(weight)] = 0
        zeros[name] = int((weight == 0).sum())
    return zeros, dense


class Masks:
    """Keeps zeros of these weights at zero while the model is trained: their gradient is zero, so no optimizer moves them.

    (Momentum of a gradient that is always zero is zero, and decay takes a share of zero.)
    """

    def __init__(self, model: nn.Module, names: list[str]):
        parameters = dict(model.named_parameters())
        self.weights = {name: parameters[name] for name in names}
        self.kept = {name: weight.detach() != 0 for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            weight.register_hook(partial(torch.mul, self.kept[name]))

    def check(self) -> int:
        """Zeros that are still there: all of them.

        Raises:
            HermitcrabError: one is not.
        """
        for name, weight in self.weights.items():
            if bool(weight.detach()[~self.kept[name]].any()):
                raise HermitcrabError(
                    f"compress.prune: healing moved pruned numbers of {name}; expected them to stay zero"
                )
        return sum(int((~kept).sum()) for kept in self.kept.values())


def sizes(file: Path) -> dict[str, int]:
    """Bytes of the file as it is, and in a zip, where zeros save something."""
    packer, deflated = zlib.compressobj(6), 0
    size = file.stat().st_size
    with open(file, "rb") as handle, progress("size in a zip", size / 1e6, "MB") as bar:
        while chunk := handle.read(CHUNK):
            deflated += len(packer.compress(chunk))
            bar.add(len(chunk) / 1e6)
    return {"file": size, "deflated": deflated + len(packer.flush())}
