"""Sum of the cross-entropy of logits, slice by slice: what is wide (float32, exponentials) stays in the cache.

`F.cross_entropy(logits.float(), target, reduction="sum")` and its gradient, up to the rounding of a last bit: each row's loss is
the same, their sum is made in float64. The plain form writes five tensors of [N, V] float32, of which none is kept here (figures:
docs/log.md).
"""

from __future__ import annotations

from typing import Any

import torch

SLICE = 1 << 18  # float32 numbers in a slice: 1 MiB
SLICE_ELSEWHERE = 1 << 27  # a GPU wants few launches; 512 MiB at a time bound its memory all the same (never run there)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits_NV, target_N)
        losses_N = torch.empty(len(target_N), device=logits_NV.device)
        for part, target in _slices(logits_NV, target_N):
            likely = torch.log_softmax(logits_NV[part].float(), -1)
            losses_N[part] = likely.gather(1, target).squeeze(1).neg_()
        return losses_N.sum(dtype=torch.float64).float()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits_NV, target_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for part, target in _slices(logits_NV, target_N):
            likely = torch.log_softmax(logits_NV[part].float(), -1).exp_()
            likely.scatter_(1, target, likely.gather(1, target) - 1)
            torch.mul(likely, scale, out=likely)
            grad_NV[part] = likely
        return grad_NV, None


def _slices(logits_NV: torch.Tensor, target_N: torch.Tensor) -> Any:
    numbers = SLICE if logits_NV.device.type == "cpu" else SLICE_ELSEWHERE
    rows = max(1, numbers // max(1, logits_NV.shape[1]))
    for start in range(0, len(target_N), rows):
        part = slice(start, start + rows)
        yield part, target_N[part].unsqueeze(1)


def summed_cross_entropy(logits_NV: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Nats, float32, over all N rows; `target_N` holds ids only, no label to ignore."""
    return _SummedCrossEntropy.apply(logits_NV, target_N)
