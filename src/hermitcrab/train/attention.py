"""Attention kernels that a plan chooses from, and the one that we add to transformers' own by its public interface.

`matmul` is plain matrix products in the working precision: on a CPU with bfloat16 and short rows it beats both the fused
kernel and `eager`, whose softmax runs in float32 (docs/log.md has the figures).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def matmul(q_BHLE: torch.Tensor, k_BHLE: torch.Tensor, v_BHLE: torch.Tensor, seen: torch.Tensor,
           scale: float | None = None, dropout: float = 0.0) -> torch.Tensor:  # fmt: skip
    """softmax(q kᵀ scale) v over the positions that are `seen` (bool, broadcast to [B, H, L, L])."""
    scale = q_BHLE.shape[-1] ** -0.5 if scale is None else scale
    if dropout == 0 and not torch.compiler.is_compiling():
        device = q_BHLE.device.type
        working = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q_BHLE.dtype
        with torch.autocast(device, enabled=False):
            return _Matmul.apply((q_BHLE * scale).to(working), k_BHLE.to(working), v_BHLE.to(working), seen)
    scores = (q_BHLE * scale) @ k_BHLE.transpose(-1, -2)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return F.dropout(scores.softmax(-1), dropout, dropout > 0) @ v_BHLE


class _Matmul(torch.autograd.Function):
    """The same, bit for bit, with mask and softmax written over the scores: the compiler does so by itself, autograd does not."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        p = q @ k.transpose(-1, -2)
        p.masked_fill_(~seen, torch.finfo(p.dtype).min)
        torch._softmax(p, -1, False, out=p)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        ds = torch._softmax_backward_data(do @ v.transpose(-1, -2), p, -1, p.dtype)
        return ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ do, None


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores + torch.zeros_like(scores).masked_fill(~seen, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


KERNELS = {"sdpa": sdpa, "eager": eager, "matmul": matmul}


def _matmul_for_transformers(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                             attention_mask: torch.Tensor | None, scaling: float | None = None, dropout: float = 0.0,
                             **kwargs: Any) -> tuple[torch.Tensor, None]:  # fmt: skip
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if (
        attention_mask is None
    ):  # transformers leaves it out where it is plainly causal, or where everything sees everything
        L, K = query.shape[2], key.shape[2]
        attention_mask = torch.ones(L, K, dtype=torch.bool, device=query.device)
        if getattr(module, "is_causal", False):
            attention_mask = attention_mask.tril(K - L)
    out = matmul(query, key, value, attention_mask, scaling, dropout if module.training else 0.0)
    return out.transpose(1, 2).contiguous(), None


def use_attention(model: Any, name: str) -> None:
    """Switch a transformers model to a kernel by its plan's name."""
    if name == "matmul":
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register("crab_matmul", _matmul_for_transformers)
        AttentionMaskInterface.register("crab_matmul", sdpa_mask)
        name = "crab_matmul"
    model.set_attn_implementation(name)
