"""Are the merged weights what was trained? Logits of both on fixed probes, and of the base, which they must not equal.

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


def within(found: dict[str, float], tolerance: dict[str, float]) -> bool:
    return found["top1_agreement"] >= tolerance["top1_agreement"] and found["mean_kl"] <= tolerance["mean_kl"]


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
        return compare(task.probe_logits(adapted, probes), task.probe_logits(merged, probes))


def judge(
    trained: torch.Tensor, merged: torch.Tensor, base: torch.Tensor, probes: list[Any], names: list[str]
) -> dict[str, Any]:
    """parity.json.

    Raises:
        HermitcrabError: where the merge changed the model, or the model is still the base.
    """
    found, moved = compare(trained, merged), compare(trained, base)["mean_kl"]
    tolerance = {"top1_agreement": TOP1, "mean_kl": max(FLOOR, SHARE * moved)}
    ok = within(found, tolerance)
    if bool((merged == base).all()):
        raise HermitcrabError(
            "the trained model answers exactly as its base does: training changed nothing that its final precision can hold. "
            "Raise train.learning_rate or train.steps, or set train.final_dtype: float32"
        )
    if not ok:
        raise HermitcrabError(
            f"the merge changed the model: top-1 agreement {found['top1_agreement']:.3f} (at least {TOP1}), mean KL "
            f"{found['mean_kl']:.2e} (at most {tolerance['mean_kl']:.2e}). Set train.final_dtype: float32"
        )
    return {"compared": names, "probes": probes, **found, "mean_kl_to_base": moved, "tolerance": tolerance, "ok": ok}
