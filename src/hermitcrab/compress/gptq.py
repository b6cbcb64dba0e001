"""Rounding that makes up for itself: each column's error is passed on to the columns that are not rounded yet (GPTQ).

Frantar et al. 2022, arXiv:2210.17323, algorithm 1, on the grids of GGUF's own types: blocks of 32 columns with a scale (and, of
the `_1` types, a smallest value), which are chosen when a block is reached and stored in half precision.

Shapes: R rows (outputs), C columns (inputs), B = 32 columns of a block.
"""

from __future__ import annotations

import numpy as np
import torch

BLOCK = 32
DAMP = 0.01  # of the mean of the diagonal, as in the paper
LEVELS = {
    "Q8_0": 127,
    "Q5_0": 16,
    "Q4_0": 8,
    "Q5_1": 31,
    "Q4_1": 15,
}  # steps from zero (or the smallest) to the largest


def round_columns(
    weight_RC: torch.Tensor, products_CC: torch.Tensor, dtype: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of the type, rounded so that the products with the calibration inputs change little.

    Args:
        weight_RC: float32. products_CC: float64, the sum over inputs x of x xT.

    Returns:
        Levels, int16 [R, C]; scales and smallest values, float16 [R, C / B].
    """
    R, C = weight_RC.shape
    work_RC = weight_RC.clone()
    factor_CC = inverse_factor(products_CC)
    levels_RC = torch.zeros(R, C, dtype=torch.int16)
    scale, least = (torch.zeros(R, C // BLOCK, dtype=torch.float16) for _ in range(2))
    # Inputs that calibration rows never used may be used by others: they count a little all the same.
    importance_C = (products_CC.diagonal() + DAMP * products_CC.diagonal().mean()).float()
    for number, start in enumerate(range(0, C, BLOCK)):
        stop = start + BLOCK
        block_RB, factor_BB = work_RC[:, start:stop], factor_CC[start:stop, start:stop]
        step_R, least_R = grid(block_RB, importance_C[start:stop], dtype)
        scale[:, number], least[:, number] = step_R.half(), least_R.half()
        step_R, least_R = scale[:, number].float(), least[:, number].float()
        errors_RB = torch.zeros_like(block_RB)
        for j in range(BLOCK):
            level_R = to_level(block_RB[:, j], step_R, least_R, dtype)
            levels_RC[:, start + j] = level_R.to(torch.int16)
            errors_RB[:, j] = (block_RB[:, j] - (least_R + step_R * level_R)) / factor_BB[j, j]
            block_RB[:, j:] -= errors_RB[:, j : j + 1] * factor_BB[j, j:]
        work_RC[:, stop:] -= errors_RB @ factor_CC[start:stop, stop:]
    return levels_RC.numpy(), scale.numpy(), least.numpy()


def inverse_factor(products_CC: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse, float32; what no input ever reached is left as if by itself."""
    damped = products_CC.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += DAMP * diagonal.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True).float()


def grid(block_RB: torch.Tensor, importance_B: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The step and the smallest value of each row's block: of a few steps around the plain one, that with the least error,
    weighed by importance."""
    top = LEVELS[dtype]
    if dtype.endswith("_1"):
        least_R = block_RB.amin(1).clamp(max=0)
        plain_R = (block_RB.amax(1) - least_R) / top
    else:
        largest = block_RB.abs().max(1)
        signed_R = block_RB.gather(1, largest.indices[:, None])[:, 0]
        least_R = torch.zeros_like(signed_R)
        plain_R = signed_R.abs() / top if dtype == "Q8_0" else signed_R / -top
    best_R, chosen_R = torch.full_like(plain_R, torch.inf), plain_R.clone()
    for share in torch.linspace(0.8, 1.05, 26):
        step_R = (plain_R * share).half().float()
        near_RB = to_level(block_RB, step_R[:, None], least_R[:, None], dtype) * step_R[:, None] + least_R[:, None]
        error_R = ((near_RB - block_RB).square() * importance_B).sum(1)
        better = error_R < best_R
        best_R, chosen_R = torch.where(better, error_R, best_R), torch.where(better, step_R, chosen_R)
    return chosen_R, least_R


def to_level(values: torch.Tensor, step: torch.Tensor, least: torch.Tensor, dtype: str) -> torch.Tensor:
    """The nearest level that the type has."""
    top = LEVELS[dtype]
    low, high = (0, top) if dtype.endswith("_1") else (-top, top) if dtype == "Q8_0" else (-top, top - 1)
    steps = torch.where(step == 0, 0.0, (values - least) / torch.where(step == 0, 1.0, step))
    return steps.round().clamp(low, high)


def pack(levels_RC: np.ndarray, scale: np.ndarray, least: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes of the blocks, uint8 [R, bytes of a row], as ggml lays them out (ggml-common.h, `block_q4_0` and its kin)."""
    R, C = levels_RC.shape
    levels = levels_RC.reshape(R, C // BLOCK, BLOCK)
    parts: list[np.ndarray] = [scale[..., None].view(np.uint8)]
    if dtype == "Q8_0":
        return np.concatenate([*parts, levels.astype(np.int8).view(np.uint8)], -1).reshape(R, -1)
    if dtype.endswith("_1"):
        parts.append(least[..., None].view(np.uint8))
    else:
        levels = levels + LEVELS[dtype]
    codes = levels.astype(np.uint8)
    if dtype.startswith("Q5"):
        parts.append(np.packbits(codes >> 4, axis=-1, bitorder="little"))
    half = BLOCK // 2
    parts.append((codes[..., :half] & 15) | ((codes[..., half:] & 15) << 4))
    return np.concatenate(parts, -1).reshape(R, -1)
