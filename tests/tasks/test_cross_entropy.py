"""The sliced cross-entropy is torch's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

from hermitcrab.tasks import cross_entropy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_value_and_gradient_are_torchs(monkeypatch, dtype, rows):
    monkeypatch.setattr(cross_entropy, "SLICE", 1000)  # ten rows of 100, and a ragged last slice
    torch.manual_seed(rows)
    logits = (torch.randn(rows, 100) * 8).to(getattr(torch, dtype))
    target = torch.randint(0, 100, (rows,))
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours = cross_entropy.summed_cross_entropy(a, target)
    theirs = F.cross_entropy(b.float(), target, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    (ours / rows).backward()
    (theirs / rows).backward()
    assert a.grad.dtype == logits.dtype
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5 if dtype == "float32" else 2**-7, atol=1e-8)


def test_no_row_is_a_loss_of_zero():
    logits = torch.zeros(0, 100, requires_grad=True)
    loss = cross_entropy.summed_cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.shape == (0, 100)
