"""y = x Wᵀ + b + s · x Aᵀ Bᵀ, forward and backward in as few passes over memory as it takes.

peft writes it as four operations, each of which reads and writes whole activations: the product with B, its scaling, the sum,
and in the backward pass another scaling and another sum. Here the scale goes into B (r columns instead of a whole activation) and
the sums into the matrix products (BLAS's beta = 1), whose float32 accumulator rounds once where the four operations round
three times. In float32 the results agree to rounding; in bfloat16 errors are of the same size (tests/train/test_lora_linear.py).

Shapes: M positions, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, W_OI: torch.Tensor, bias: torch.Tensor | None, A_RI: torch.Tensor,
                B_OR: torch.Tensor, scaling: float) -> torch.Tensor:  # fmt: skip
        x_MI = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        A, B = A_RI.to(x.dtype), (B_OR * scaling).to(x.dtype)
        h_MR = x_MI @ A.t()
        y_MO = F.linear(x_MI, W_OI, bias).addmm_(h_MR, B.t())
        ctx.save_for_backward(x_MI, h_MR, W_OI, A, B)
        ctx.scaling, ctx.dtypes = scaling, (A_RI.dtype, B_OR.dtype)
        return y_MO.view(*x.shape[:-1], W_OI.shape[0])

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MI, h_MR, W_OI, A, B = ctx.saved_tensors
        dy_MO = dy.reshape(x_MI.shape[0], dy.shape[-1])
        dh_MR = dy_MO @ B
        dA = (dh_MR.t() @ x_MI).to(ctx.dtypes[0])
        dB = (dy_MO.t() @ h_MR).to(ctx.dtypes[1]).mul_(ctx.scaling)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy_MO @ W_OI).addmm_(dh_MR, A).view(*dy.shape[:-1], W_OI.shape[1])
        return dx, None, None, dA, dB, None


class LoraLinear(PeftLinear):
    """peft's own layer; the plain case of a training goes the short way, every other case is peft's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapter = self._short_way(x) if not args and not kwargs else None
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base = self.base_layer
        dtype = base.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            return _Adapted.apply(x.to(dtype), base.weight, base.bias, self.lora_A[adapter].weight,
                                  self.lora_B[adapter].weight, self.scaling[adapter])  # fmt: skip

    def _short_way(self, x: torch.Tensor) -> str | None:
        """The one adapter that is on, if nothing is asked for but a sum with its product."""
        if not self.training or self.merged or self.disable_adapters or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or self.lora_variant or not isinstance(self.lora_dropout[name], nn.Identity):
            return None
        base = self.base_layer
        if type(base) is not nn.Linear or base.weight.requires_grad or self.lora_B[name].bias is not None:
            return None
        device = x.device.type
        if device == "meta":
            return None
        working = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return name if base.weight.dtype == working else None
