"""GPTQ on GGUF's grids: the bytes are those that ggml reads, and products with the calibration inputs change less."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hermitcrab.compress import gptq
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import ggml_native


def dequantized(packed: np.ndarray, dtype: str) -> np.ndarray:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(packed, GGMLQuantizationType[dtype])


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and inputs that go together, a few of them large, as those of a trained model do."""
    draw = torch.Generator().manual_seed(0)
    x_TC = torch.randn(400, 24, generator=draw) @ torch.randn(24, 96, generator=draw) + 0.1 * torch.randn(
        400, 96, generator=draw
    )
    x_TC[:, 7] *= 30
    return torch.randn(48, 96, generator=draw), x_TC


@pytest.mark.parametrize("dtype", list(gptq.LEVELS))
def test_packed_blocks_are_read_as_they_were_meant(dtype: str) -> None:
    weight_RC, x_TC = problem()
    levels, scale, least = gptq.round_columns(weight_RC, (x_TC.T @ x_TC).double(), dtype)
    found = dequantized(gptq.pack(levels, scale, least, dtype), dtype)
    meant = levels.reshape(48, 3, 32) * scale.astype(np.float32)[..., None] + least.astype(np.float32)[..., None]
    assert np.allclose(found, meant.reshape(48, 96), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", list(gptq.LEVELS))
def test_products_change_less_than_by_rounding_to_the_nearest(dtype: str) -> None:
    weight_RC, x_TC = problem()
    ours = torch.from_numpy(
        dequantized(gptq.pack(*gptq.round_columns(weight_RC, (x_TC.T @ x_TC).double(), dtype), dtype), dtype)
    )
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    nearest = torch.from_numpy(dequantized(quantize(weight_RC.numpy(), GGMLQuantizationType[dtype]), dtype))
    errors = [float((x_TC @ (w - weight_RC).T).square().mean()) for w in (ours, nearest)]
    assert errors[0] < errors[1] / 2


def test_inputs_that_were_never_used_and_rows_of_zeros_are_left_alone() -> None:
    weight_RC, x_TC = problem()
    weight_RC[3], x_TC[:, 40:50] = 0, 0
    found = dequantized(gptq.pack(*gptq.round_columns(weight_RC, (x_TC.T @ x_TC).double(), "Q8_0"), "Q8_0"), "Q8_0")
    assert np.isfinite(found).all()
    assert (found[3] == 0).all()
    assert np.abs(found - weight_RC.numpy())[:, 40:50].max() < 0.05


def test_llama_cpps_quantizer_packs_as_the_python_one_does_and_weighs_by_importance() -> None:
    pytest.importorskip("xllamacpp")
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    values = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    for dtype in ("Q8_0", "Q4_0", "Q5_1"):
        assert (ggml_native.quantize(values, dtype) == quantize(values, GGMLQuantizationType[dtype])).all()
    importance = np.random.default_rng(1).gamma(0.3, 1.0, 256).astype(np.float32)
    plain, weighed = (dequantized(ggml_native.quantize(values, "Q4_K", w), "Q4_K") for w in (None, importance))
    errors = [float((importance * (found - values) ** 2).mean()) for found in (plain, weighed)]
    assert errors[1] < errors[0]
    with pytest.raises(HermitcrabError, match="one number a column"):
        ggml_native.quantize(values, "Q4_K", importance[:5])
