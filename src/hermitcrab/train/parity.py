"""Are the merged weights what was trained? Outputs of both on fixed probes, and of the base, which they must not equal.

Both run in float32, so what is seen is the rounding of the merge alone. A tolerance is a ratio: the merge may move the
distribution by at most a tenth of what training moved it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hermitcrab.errors import HermitcrabError
from hermitcrab.tasks import Task

TOP1 = 0.95
SHARE = 0.1
FLOOR = 1e-3  # nats; below this nothing is asked


def compare(a_NV: torch.Tensor, b_NV: torch.Tensor) -> dict[str, float]:
    """Largest logit difference, mean KL(a || b) in nats, share of positions with the same likeliest token."""
    a, b = a_NV.log_softmax(-1), b_NV.log_softmax(-1)
    return {
        "max_abs_logit_difference": float((a_NV - b_NV).abs().max()),
        "mean_kl": float((a.exp() * (a - b)).sum(-1).mean()),
        "top1_agreement": float((a_NV.argmax(-1) == b_NV.argmax(-1)).float().mean()),
    }


def compare_numbers(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Of outputs that are no logits: the largest difference, and the root of the mean squared one."""
    return {"max_abs_difference": float((a - b).abs().max()), "rms_difference": float((a - b).square().mean().sqrt())}


def within(found: dict[str, float], tolerance: dict[str, float]) -> bool:
    """Agreement at least, and every distance at most, what is tolerated."""
    return all(found[k] >= v if k == "top1_agreement" else found[k] <= v for k, v in tolerance.items())


def recompute(task: Task, package: Path, base: nn.Module, merged: nn.Module, probes: list[Any]) -> dict[str, float]:
    """Parity of a package afresh, on the recorded probes.

    Args:
        base: in the precision that it was trained in; the package's adapter is put on it.
        merged: the package's own weights, read by our own loader: a package may be anybody's.
    """
    from peft import PeftModel

    from hermitcrab.models.load import library_errors, quiet

    with quiet(), library_errors(package / "adapter"):
        adapted = PeftModel.from_pretrained(base.float(), package / "adapter")
        measure = compare if task.distributions else compare_numbers
        return measure(task.probe_outputs(adapted, probes), task.probe_outputs(merged, probes))


def judge(
    trained: torch.Tensor, merged: torch.Tensor, base: torch.Tensor, probes: list[Any], names: list[str],
    distributions: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """parity.json.

    Raises:
        HermitcrabError: where the merge changed the model, or the model is still the base.
    """
    if bool((merged == base).all()):
        raise HermitcrabError(
            "the trained model answers exactly as its base does: training changed nothing that its final precision can hold. "
            "Raise train.learning_rate or train.steps, or set train.final_dtype: float32"
        )
    measure, distance = (compare, "mean_kl") if distributions else (compare_numbers, "rms_difference")
    found, moved = measure(trained, merged), measure(trained, base)[distance]
    if distributions:
        tolerance = {"top1_agreement": TOP1, "mean_kl": max(FLOOR, SHARE * moved)}
    else:
        tolerance = {"rms_difference": max(FLOOR * float(trained.square().mean().sqrt()), SHARE * moved)}
    ok = within(found, tolerance)
    if not ok:
        told = ", ".join(
            f"{k} {found[k]:.3g} (at {'least' if k == 'top1_agreement' else 'most'} {v:.3g})"
            for k, v in tolerance.items()
        )
        raise HermitcrabError(f"the merge changed the model: {told}. Set train.final_dtype: float32")
    return {
        "compared": names,
        "probes": probes,
        **found,
        f"{distance}_to_base": moved,
        "tolerance": tolerance,
        "ok": ok,
    }
