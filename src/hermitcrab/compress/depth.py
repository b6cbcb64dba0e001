"""Depth: the block of layers that changes the stream least, taken out.

Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv:2403.17887, eq. 6-7: of all blocks of n layers the one
between whose input and output the angle is smallest, arccos(x_l · x_(l+n) / ‖x_l‖ ‖x_(l+n)‖) / π. They take the last token of each
text; here the mean is over all positions, as ShortGPT has it (Men et al. 2024, arXiv:2403.03853).

Shapes: L layers, n of them dropped, T positions, D width of the stream.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hermitcrab.compress import anatomy, listening
from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    import pyarrow as pa

    from hermitcrab.tasks import Task


def kept_of(layers: int, keep: float) -> int:
    """How many layers stay: the nearest whole number, at least one, at least one fewer than there are."""
    return max(1, min(layers - 1, round(keep * layers)))


def distances(task: Task, model: Any, rows: pa.Table, dropped: int) -> list[float]:
    """Mean angle, as a share of π, across the `dropped` layers from l on, for each l from 0 to L - n."""
    stack = anatomy.layers(model)
    if not 0 < dropped < len(stack):
        raise HermitcrabError(
            f"compress.prune: expected to drop 1 to {len(stack) - 1} layers of {len(stack)}. Received: {dropped}"
        )
    streams: dict[int, torch.Tensor] = {}
    total_l, positions = torch.zeros(len(stack) + 1 - dropped, dtype=torch.float64), 0

    def hear(number: int, given: torch.Tensor) -> None:
        nonlocal positions
        x_TD = given.detach().float().flatten(0, -2)
        streams[number] = x_TD / x_TD.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        if number == 0:
            positions += len(x_TD)
        if (first := number - dropped) >= 0:
            cosine_T = (streams.pop(first) * streams[number]).sum(-1).clamp(-1, 1)
            total_l[first] += torch.acos(cosine_T).double().sum() / math.pi

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        hear(len(stack), output[0] if isinstance(output, tuple) else output)

    last = stack[-1].register_forward_hook(leave)
    try:
        with listening.listening(list(stack), hear):
            listening.run(task, model, rows, "measuring layers")
    finally:
        last.remove()
    return (total_l / max(1, positions)).tolist()


def even(layers: int, kept: int) -> list[int]:
    """So many of the layers, evenly spread, the first and the last among them (Sanh et al. 2019, arXiv:1910.01108, section 3)."""
    return [round(i * (layers - 1) / max(1, kept - 1)) for i in range(kept)]


def cut(model: Any, stays: list[int]) -> None:
    """Take all layers but these (ascending) out of `model` and rewrite its configuration, in place.

    What a configuration says of each layer (`layer_types`) goes with its layer.
    """
    stack = anatomy.layers(model)
    config, depth = model.config, len(stack)
    if getattr(config, "use_sliding_window", False) and getattr(config, "max_window_layers", depth) < depth:
        raise HermitcrabError(
            f"compress.prune: {config.model_type} counts its layers with a sliding window from max_window_layers="
            f"{config.max_window_layers}, so none of them can be dropped. Use method: width or magnitude"
        )
    for key, value in list(config.to_dict().items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(config, key, [value[number] for number in stays])
    config.num_hidden_layers = len(stays)
    kept = [stack[number] for number in stays]
    del stack[:]
    stack.extend(kept)
    for number, layer in enumerate(kept):  # the place of a layer's keys and values in a cache
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
