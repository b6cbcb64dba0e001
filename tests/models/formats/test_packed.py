"""GPTQ and AWQ layouts, packed here number by number as AutoGPTQ and AutoAWQ do it."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights
from hermitcrab.models.formats.packed import unpacked

OUT, IN, GROUP = 24, 64, 16


def quantized(seed: int, bits: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole numbers (in, out), zero points and scales (groups, out)."""
    r = np.random.default_rng(seed)
    top = 2**bits
    scales = r.uniform(0.01, 0.1, (IN // GROUP, OUT)).astype(np.float16)
    return r.integers(0, top, (IN, OUT)), r.integers(1, top, (IN // GROUP, OUT)), scales


def word(numbers: list[int], bits: int) -> int:
    out = 0
    for i, n in enumerate(numbers):
        out |= int(n) << (bits * i)
    return out - 2**32 if out >= 2**31 else out


def gptq(stem: str, q: np.ndarray, z: np.ndarray, scales: np.ndarray, group: np.ndarray, bits: int, less: int = 1):
    many = 32 // bits
    rows = [[word([q[i + k, o] for k in range(many)], bits) for o in range(q.shape[1])] for i in range(0, len(q), many)]
    points = [
        [word([z[g, o + k] - less for k in range(many)], bits) for o in range(0, z.shape[1], many)]
        for g in range(len(z))
    ]
    return {f"{stem}.qweight": np.array(rows, np.int32), f"{stem}.qzeros": np.array(points, np.int32),
            f"{stem}.scales": scales, f"{stem}.g_idx": group.astype(np.int32)}  # fmt: skip


def awq(stem: str, q: np.ndarray, z: np.ndarray, scales: np.ndarray):
    def columns(x: np.ndarray) -> np.ndarray:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return np.array([[word([row[o + k] for k in order], 4) for o in range(0, len(row), 8)] for row in x], np.int32)

    return {f"{stem}.qweight": columns(q), f"{stem}.qzeros": columns(z), f"{stem}.scales": scales}


def meant(q: np.ndarray, z: np.ndarray, scales: np.ndarray, group: np.ndarray) -> np.ndarray:
    return ((q - z[group]) * scales.astype(np.float32)[group]).T


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("second", [False, True])
def test_gptq(tmp_path: Path, bits: int, second: bool) -> None:
    """Groups in the order of activations; zero points stored less one, in the second version as they are."""
    q, z, scales = quantized(bits, bits)
    if bits == 2:  # sixteen in a word
        q, z, scales = (np.concatenate([x, x[:, :8]], 1) for x in (q, z, scales))
    group = np.random.default_rng(9).permutation(np.arange(IN) // GROUP)
    save_file(
        gptq("model.layers.0.self_attn.q_proj", q, z, scales, group, bits, 0 if second else 1),
        tmp_path / "model.safetensors",
    )
    if second:
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"checkpoint_format": "gptq_v2"}}))
    found = unpacked(open_weights(tmp_path))
    assert list(found.tensors) == ["model.layers.0.self_attn.q_proj.weight"]
    assert found.dtypes == {f"GPTQ{bits}": 1}
    np.testing.assert_allclose(
        found.read("model.layers.0.self_attn.q_proj.weight"), meant(q, z, scales, group), rtol=1e-6
    )


def test_awq(tmp_path: Path) -> None:
    q, z, scales = quantized(3)
    save_file({**awq("a", q, z, scales), "b": np.ones(4, np.float32)}, tmp_path / "model.safetensors")
    found = unpacked(open_weights(tmp_path / "model.safetensors"))
    assert sorted(found.tensors) == ["a.weight", "b"]
    np.testing.assert_allclose(found.read("a.weight"), meant(q, z, scales, np.arange(IN) // GROUP), rtol=1e-6)


def test_shapes_that_do_not_fit_stay_as_they_are_and_a_group_out_of_range_is_told(tmp_path: Path) -> None:
    q, z, scales = quantized(4)
    group = np.arange(IN) // GROUP
    tensors = gptq("a", q, z, scales, group, 4)
    odd = {**tensors, "a.qzeros": tensors["a.qzeros"][:, :-1].copy()}
    save_file(odd, tmp_path / "odd.safetensors")
    assert "a.qweight" in unpacked(open_weights(tmp_path / "odd.safetensors")).tensors
    save_file({**tensors, "a.g_idx": np.full(IN, 99, np.int32)}, tmp_path / "bad.safetensors")
    with pytest.raises(HermitcrabError, match="names a group"):
        unpacked(open_weights(tmp_path / "bad.safetensors")).read("a.weight")
