"""Width: the MLP neurons and attention heads that add least on calibration rows, taken out for good.

- Importance of a unit: the mean squared length of what it adds, E‖W_u a_u‖², with a_u its activation and W_u the columns that
  read it. Activations decide, as in Minitron (Muralidharan et al. 2024, arXiv:2407.14679, section 2.2), and the weights that
  read them, as in Wanda (Sun et al. 2023, arXiv:2306.11695).
- Every layer keeps the same number, for configurations have one number for all layers.
- Proof: the cut model, loaded afresh from its files, computes what the whole one does with the other units silenced.

Shapes: T positions, U units, W columns a unit, D rows of the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hermitcrab.compress import anatomy, listening
from hermitcrab.compress.anatomy import Bundle
from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    import pyarrow as pa

    from hermitcrab.tasks import Task

BLOCK = 32  # kernels and quantized types want widths of whole blocks
SAME = 1e-3  # share of the largest logit by which the proof may be off: sums of other lengths round otherwise


def importance(task: Task, model: Any, bundles: list[Bundle], rows: pa.Table) -> list[torch.Tensor]:
    """E‖W_u a_u‖² of every unit: float64 [U] a bundle."""
    seen = [0] * len(bundles)
    moments_UWW: list[Any] = [0.0] * len(bundles)

    def hear(number: int, given: torch.Tensor) -> None:
        bundle = bundles[number]
        a_TUW = given.detach().float().reshape(-1, bundle.units, bundle.width)
        seen[number] += len(a_TUW)
        moments_UWW[number] += torch.einsum("tuw,tuv->uwv", a_TUW, a_TUW).double()

    with listening.listening([b.reader for b in bundles], hear):
        listening.run(task, model, rows, "weighing units")
    found = []
    for bundle, moment_UWW, count in zip(bundles, moments_UWW, seen, strict=True):
        w_DUW = bundle.reader.weight.detach().double().unflatten(1, (bundle.units, bundle.width))
        found.append(torch.einsum("duw,uwv,duv->u", w_DUW, moment_UWW / max(1, count), w_DUW))
    return found


def kept_of(units: int, keep: float) -> int:
    """How many of so many units: the nearest whole number, of wide layers the nearest whole block."""
    step = BLOCK if units % BLOCK == 0 and units >= 4 * BLOCK else 1
    return min(units, max(step, round(keep * units / step) * step))


def best(scores: list[torch.Tensor], keep: float) -> list[torch.Tensor]:
    """The units with the largest scores, ascending by place: int64 [K] a bundle. Of equals the first."""
    return [
        score_U.sort(descending=True, stable=True).indices[: kept_of(len(score_U), keep)].sort().values
        for score_U in scores
    ]


def find(model: Any, parts: Sequence[str]) -> dict[str, list[Bundle]]:
    """The bundles of each part (`neurons`, `heads`); HermitcrabError where the architecture has none."""
    return {part: getattr(anatomy, part)(model) for part in parts}


def cut(model: Any, found: dict[str, list[Bundle]], kept: dict[str, list[torch.Tensor]]) -> None:
    """Take the other units out of `model` and rewrite its configuration, in place."""
    config = model.config
    for part, bundles in found.items():
        for bundle, kept_K in zip(bundles, kept[part], strict=True):
            bundle.keep(kept_K)
        counts = [len(kept_K) for kept_K in kept[part]]
        if part == "heads":
            each = config.num_attention_heads // config.num_key_value_heads
            config.num_key_value_heads, config.num_attention_heads = counts[0], counts[0] * each
        elif getattr(config, "hidden_sizes", None):
            config.hidden_sizes = counts
        else:
            config.intermediate_size = counts[0]
    try:
        type(config).from_dict(
            config.to_dict()
        )  # its own rules, as that the width of the stream is a multiple of the heads
    except Exception as error:
        why = " ".join(str(error).split())
        raise HermitcrabError(
            f"compress.prune: transformers allows no {config.model_type} of this shape; choose another share. It says: {why}"
        ) from error


def silence(found: dict[str, list[Bundle]], kept: dict[str, list[torch.Tensor]]) -> None:
    """What the cut model must compute, in the shapes of the whole one."""
    for part, bundles in found.items():
        for bundle, kept_K in zip(bundles, kept[part], strict=True):
            bundle.silence(kept_K)


def prove(wanted_NV: torch.Tensor, found_NV: torch.Tensor, name: str) -> float:
    """The largest difference of logits, as a share of the largest logit.

    Raises:
        HermitcrabError: the cut model computes something else than it should.
    """
    off = float((wanted_NV - found_NV).abs().max() / wanted_NV.abs().max().clamp(min=1e-30))
    if not off <= SAME:
        raise HermitcrabError(
            f"compress.prune: a {name} with units taken out does not compute what it does with them silenced: logits differ by "
            f"{off:.2g} of the largest, expected at most {SAME}; its architecture uses its widths in a way that is not known here"
        )
    return off
