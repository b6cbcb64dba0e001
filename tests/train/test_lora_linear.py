"""Adapters the short way: peft's numbers in float32, an error of peft's size in bfloat16, and peft's own code for every other case."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from peft import LoraConfig
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

from hermitcrab.train.lora_linear import LoraLinear


def layer(kind: type, dtype: Any, bias: bool = False, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    base = nn.Linear(48, 80, bias=bias).to(dtype).requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout)
    made = kind(base, "default", config=config, r=4, lora_alpha=12)
    nn.init.normal_(made.lora_B["default"].weight)  # peft begins with zeros, which would hide mistakes
    for adapter in (made.lora_A, made.lora_B):
        adapter.float()
    return made.train()


def inputs(*shape: int) -> Any:
    return torch.randn(*shape, 48, generator=torch.Generator().manual_seed(1))


def run(made: Any, x: Any, autocast: bool) -> list[Any]:
    """Output and the gradients of input, A and B."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = made(x)
    torch.manual_seed(2)
    y.backward(torch.randn(y.shape).to(y.dtype))
    return [
        t.detach().double() for t in (y, x.grad, made.lora_A["default"].weight.grad, made.lora_B["default"].weight.grad)
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_in_float32_it_is_what_peft_computes(bias):
    x = inputs(3, 5)
    ours, theirs = layer(LoraLinear, torch.float32, bias), layer(PeftLinear, torch.float32, bias)
    assert ours._short_way(x) == "default"
    for a, b in zip(run(ours, x, False), run(theirs, x, False), strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()


def test_in_bfloat16_its_error_is_at_most_twice_pefts():
    x = inputs(16, 64).bfloat16()
    ours, theirs = (run(layer(kind, torch.bfloat16), x, True) for kind in (LoraLinear, PeftLinear))
    exact = layer(PeftLinear, torch.bfloat16)
    exact.base_layer.float()
    for mine, other, wanted in zip(ours, theirs, run(exact, x.float(), False), strict=True):
        assert (mine - wanted).norm() <= 2 * (other - wanted).norm()


def test_every_other_case_is_pefts():
    x = inputs(2)
    assert layer(LoraLinear, torch.float32, dropout=0.1)._short_way(x) is None
    assert layer(LoraLinear, torch.float32).eval()._short_way(x) is None
    assert layer(LoraLinear, torch.bfloat16)._short_way(x) is None  # weights that are not in the working precision
    off = layer(LoraLinear, torch.float32)
    off.enable_adapters(False)
    assert off._short_way(x) is None
    merged = layer(LoraLinear, torch.float32)
    merged.merge()
    torch.testing.assert_close(merged(x), layer(PeftLinear, torch.float32)(x), rtol=1e-5, atol=1e-5)


def test_nothing_in_is_nothing_out():
    """As an expert that no token chose."""
    ours = layer(LoraLinear, torch.float32, False)
    x = torch.zeros(0, 48, requires_grad=True)
    y = ours(x)
    assert y.shape == layer(PeftLinear, torch.float32, False)(x).shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 48)
