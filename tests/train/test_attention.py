"""The `matmul` kernel written over its scores is its formula, bit for bit."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hermitcrab.train.attention import matmul


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_kernel_is_its_formula_bit_for_bit(precision):
    """Under autocast queries and keys come in float32 (from the rotation), values in bfloat16."""
    torch.manual_seed(0)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    mixed = torch.float32 if precision == "autocast" else dtype
    q, k = (torch.randn(2, 32, 3, 16).to(mixed).transpose(1, 2).requires_grad_() for _ in range(2))
    v = torch.randn(2, 32, 3, 16).to(dtype).transpose(1, 2).requires_grad_()
    seen = torch.ones(32, 32, dtype=torch.bool).tril().expand(2, 1, 32, 32).clone()
    seen[:, :, 20:, :20] = False
    given = torch.randn(2, 3, 32, 16).to(dtype)

    def formula(q, k, v, seen):
        scores = (q * 16**-0.5) @ k.transpose(-1, -2)
        return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) @ v

    found = []
    for kernel in (matmul, formula):
        q.grad = k.grad = v.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            out = kernel(q, k, v, seen)
        out.to(dtype).backward(given)
        found.append([out, q.grad, k.grad, v.grad])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b.to(a.dtype))


@pytest.mark.parametrize("causal", [False, True])
def test_without_a_mask_only_a_causal_module_is_causal(causal):
    """Encoders hand no mask over where nothing is hidden (ViT); decoders where the hiding is plain."""
    from types import SimpleNamespace

    from hermitcrab.train.attention import _matmul_for_transformers

    q, k, v = (torch.randn(2, 3, 5, 4) for _ in range(3))
    module = SimpleNamespace(is_causal=causal, training=False)
    ours, _ = _matmul_for_transformers(module, q, k, v, None)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))
