"""What can be taken out of a model: its layers, the neurons of their MLPs, their attention heads by key-value group.

Found in the model's own modules, by the names of transformers' layers. What is not found there is refused with the name of the
architecture; that a cut is right is proved afterwards on the cut model itself (`width.py`).

Shapes: U units, W numbers of the reader's input that belong to one unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from hermitcrab.errors import HermitcrabError

MLPS = ((("gate_proj", "up_proj"), "down_proj"), (("fc1",), "fc2"))  # what makes the neurons, and what reads them
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Bundle:
    """Units that can go one by one: rows of what makes them, columns of what reads them.

    Attributes:
        makers: each with the rows that belong to one unit.
        reader: `width` of its columns belong to one unit.
    """

    where: str
    units: int
    makers: tuple[tuple[nn.Linear, int], ...]
    reader: nn.Linear
    width: int

    def keep(self, kept_K: torch.Tensor) -> None:
        """Only these units (int64, ascending), in place."""
        for maker, rows in self.makers:
            _take(maker, 0, _spread(kept_K, rows))
        _take(self.reader, 1, _spread(kept_K, self.width))

    def silence(self, kept_K: torch.Tensor) -> None:
        """The same function with all shapes as they were: nobody reads the other units."""
        gone_U = torch.ones(self.units, dtype=torch.bool)
        gone_U[kept_K] = False
        with torch.no_grad():
            self.reader.weight[:, gone_U.repeat_interleave(self.width)] = 0


def _spread(kept_K: torch.Tensor, size: int) -> torch.Tensor:
    return (kept_K[:, None] * size + torch.arange(size)).flatten()


def _take(linear: nn.Linear, dimension: int, which: torch.Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dimension, which))
    if dimension == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, which))
    linear.out_features, linear.in_features = linear.weight.shape


def layers(model: Any) -> nn.ModuleList:
    """The list of layers that the model runs through one after the other.

    Raises:
        HermitcrabError: it has none, or several.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    found = [
        module for _, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(found) != 1:
        raise HermitcrabError(
            f"compress.prune: {model.config.model_type} has no one list of layers that are alike; expected an architecture "
            "with num_hidden_layers, as llama or vit. Use method: width or magnitude"
        )
    return found[0]


def neurons(model: Any) -> list[Bundle]:
    """Of every MLP: one bundle a layer, or a hidden layer of an `mlp`.

    Raises:
        HermitcrabError: the architecture has no MLP that is known here.
    """
    if getattr(model.config, "hidden_sizes", None) and isinstance(getattr(model, "layers", None), nn.Sequential):
        linear = [*(m for m in model.layers if isinstance(m, nn.Linear)), model.classifier]
        return [
            Bundle(f"hidden layer {i}", a.out_features, ((a, 1),), b, 1) for i, (a, b) in enumerate(pairwise(linear))
        ]
    found = []
    for number, layer in enumerate(layers(model)):
        here = [bundle for module in layer.modules() if (bundle := _mlp(module, f"layer {number}"))]
        if len(here) != 1:
            raise HermitcrabError(
                f"compress.prune: layer {number} of {model.config.model_type} has {len(here)} MLPs of the kinds that are known: "
                f"{', '.join(' and '.join(makers) + ' with ' + reader for makers, reader in MLPS)}. Use method: depth or magnitude"
            )
        found += here
    return found


def _mlp(module: nn.Module, where: str) -> Bundle | None:
    for names, reader in MLPS:
        parts: list[Any] = [getattr(module, name, None) for name in (*names, reader)]
        if all(isinstance(part, nn.Linear) for part in parts):
            *makers, last = parts
            return Bundle(where, last.in_features, tuple((m, 1) for m in makers), last, 1)
    return None


def heads(model: Any) -> list[Bundle]:
    """Key-value heads, each with the query heads that read it: one bundle a layer.

    Ainslie et al. 2023, arXiv:2305.13245 (grouped queries): a query head without its key and value computes nothing, so they go together.

    Raises:
        HermitcrabError: the architecture has no attention that is known here, or derives the width of a head from their number.
    """
    config = model.config
    width, queries = getattr(config, "head_dim", None), getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None)
    if not width or not queries or not groups:
        raise HermitcrabError(
            f"compress.prune: heads of {config.model_type} cannot be taken out: its configuration has no head_dim or "
            "num_key_value_heads of its own, so fewer heads would be wider ones. Use parts: [neurons]"
        )
    found = []
    for number, layer in enumerate(layers(model)):
        here = [m for m in layer.modules() if all(isinstance(getattr(m, n, None), nn.Linear) for n in ATTENTION)]
        found_here: list[Any] = [getattr(here[0], name) for name in ATTENTION] if len(here) == 1 else [None] * 4
        q, k, v, o = found_here
        each = queries // groups * width
        if q is None or (q.out_features, k.out_features, v.out_features, o.in_features) != (
            groups * each, groups * width, groups * width, groups * each,
        ):  # fmt: skip
            raise HermitcrabError(
                f"compress.prune: layer {number} of {config.model_type} has no attention of the kind that is known: one each of "
                f"{', '.join(ATTENTION)} for {queries} heads of {width}. Use parts: [neurons]"
            )
        found.append(Bundle(f"layer {number}", groups, ((q, each), (k, width), (v, width)), o, each))
    return found
