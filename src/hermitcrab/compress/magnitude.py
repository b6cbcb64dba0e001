"""Magnitude: the smallest numbers of the matrices become zero and stay zero while the rest heals.

By weights alone: |W|. By activations (Wanda, Sun et al. 2023, arXiv:2306.11695, eq. 1): |W_ij| · ‖x_j‖ with x_j what calibration rows
give to input j, compared within each row i.

Han et al. 2015, arXiv:1506.02626 (magnitude, then training on); Zhu & Gupta 2017, arXiv:1710.01878 (masks); Mishra et al. 2021,
arXiv:2104.08378 (2:4: two of four neighbors along the input, the form that sparse tensor cores read).

A zero in a dense file takes as many bytes as any other number: what other forms would save is told, and the file's size as it is.
"""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hermitcrab.compress import listening
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

    from hermitcrab.tasks import Task

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


def input_norms(task: Task, model: Any, rows: pa.Table) -> dict[str, torch.Tensor]:
    """Root mean square of each input of every linear layer on these rows: float32 [inputs], by the name of its weight."""
    linear = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    named = [name for name in matrices(model) if name in linear]
    squares: list[Any] = [0.0] * len(named)
    seen = [0] * len(named)

    def hear(number: int, given: torch.Tensor) -> None:
        x_TD = given.detach().float().flatten(0, -2)
        squares[number] += x_TD.square().sum(0).double()
        seen[number] += len(x_TD)

    with listening.listening([linear[name] for name in named], hear):
        listening.run(task, model, rows, "measuring inputs")
    return {
        name: (total / max(1, count)).sqrt().float() for name, total, count in zip(named, squares, seen, strict=True)
    }


@torch.no_grad()
def prune(
    weights: dict[str, nn.Parameter], sparsity: float, over: str, norms: dict[str, torch.Tensor] | None = None
) -> dict[str, int]:
    """Zero the smallest numbers, in place; how many are zero by name.

    Args:
        over: `tensor`: the share in every matrix (with `norms`: in each of its rows); `model`: over all of them, one threshold.
        norms: of `input_norms`; a matrix without is taken by its weights alone.

    Exactly round(share * numbers) go: of equal ones those that stand first.
    """
    scores = {name: score(name, weight, norms) for name, weight in weights.items()}
    if over == "model":
        joined = torch.cat([s.flatten() for s in scores.values()])
        gone = _smallest(joined[None], sparsity).flatten()
        parts = dict(zip(weights, gone.split([w.numel() for w in weights.values()]), strict=True))
    else:
        parts = {n: _smallest(s if n in (norms or {}) else s.view(1, -1), sparsity) for n, s in scores.items()}
    for name, weight in weights.items():
        weight[parts[name].view_as(weight)] = 0
    return {name: int((weight == 0).sum()) for name, weight in weights.items()}


def score(name: str, weight: nn.Parameter, norms: dict[str, torch.Tensor] | None) -> torch.Tensor:
    """float32, of the shape of the weight."""
    found = weight.detach().abs().float()
    return found * norms[name] if norms and name in norms else found


def _smallest(scores_RC: torch.Tensor, share: float) -> torch.Tensor:
    """Which are the smallest of each row: bool [R, C]. Found by the value at that place; to sort them all takes five times as long."""
    count = round(share * scores_RC.shape[1])
    if not count:
        return torch.zeros_like(scores_RC, dtype=torch.bool)
    last_R1 = scores_RC.kthvalue(count, dim=1, keepdim=True).values
    under, equal = scores_RC < last_R1, scores_RC == last_R1
    return under | (equal & (equal.cumsum(1) <= count - under.sum(1, keepdim=True)))


@torch.no_grad()
def prune_2_of_4(
    weights: dict[str, nn.Parameter], norms: dict[str, torch.Tensor] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Zero the two smallest of each four neighbors along the input, in place; zeros by name, and the names that stay dense because
    their inputs cannot be cut into fours."""
    zeros, dense = {}, []
    for name, weight in weights.items():
        if weight.shape[1:].numel() % 4:
            dense.append(name)
            continue
        weight[_smallest(score(name, weight, norms).reshape(-1, 4), 0.5).view_as(weight)] = 0
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
    """Bytes of the file as it is, and in a zip (the fastest deflate), where zeros save something."""
    packer, deflated = zlib.compressobj(1), 0
    size = file.stat().st_size
    with open(file, "rb") as handle, progress("size in a zip", size / 1e6, "MB") as bar:
        while chunk := handle.read(CHUNK):
            deflated += len(packer.compress(chunk))
            bar.add(len(chunk) / 1e6)
    return {"file": size, "deflated": deflated + len(packer.flush())}
