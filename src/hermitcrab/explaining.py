"""`crab explain`: which parts of an input an answer rests on, by a method of the field, with what says how far to trust it.

integrated-gradients   what each number of the input contributes between "nothing" and what was given (Sundararajan, Taly and Yan 2017,
                       arXiv:1703.01365); contributions add up to the difference of the scores, and what is left over is told
occlusion              how the score falls when a part is replaced by "nothing" (Zeiler and Fergus 2014, arXiv:1311.2901)

Both by Captum. An explanation that does not change when the weights are randomized explains nothing of the model (Adebayo et al.
2018, arXiv:1810.03292): `sanity` draws the weights anew and tells the rank correlation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.progress import progress
from hermitcrab.serve.opening import Opened
from hermitcrab.tasks import Asking, load_task

if TYPE_CHECKING:
    import numpy as np

    from hermitcrab.tasks.explained import Question

METHODS = ("integrated-gradients", "occlusion")
STEPS = 64  # of the path from nothing to what was given
AT_ONCE = 16
LEFT_OVER = 0.05  # share of the score's difference that may be missing before it is said to be rough


def explain(
    opened: Opened,
    words: Sequence[str],
    column: str,
    *,
    method: str = METHODS[0],
    max_new_tokens: int = 64,
    sanity: bool = False,
) -> list[dict[str, Any]]:
    """An explanation of each answer to what a user names: `{input, kind, method, prediction, explains, score, plain_score, left_over,
    parts}`, a part being `{part, contribution}` in the score's unit; of images also `heat`, float [H, W].

    Raises:
        UsageError: an input that is none, a task that has no explanations.
        HermitcrabError: a file that cannot be read; the extra `explain` is not installed.
    """
    needs("captum", "explain")
    inputs = load_task(opened.task).read_inputs(words, column)
    from hermitcrab.serve.predict import Reference

    reference = Reference(opened)
    reference.model.float()  # in bfloat16 the steps of a path drown in rounding
    part = Asking(opened.choices, opened.plain_text, max_new_tokens)
    told = []
    with progress("explaining", len(inputs), "inputs") as bar:
        for one in inputs:
            question = reference.task.question(reference.model, one, part)
            made = attribute(question, method)
            if sanity:
                made["randomized_correlation"] = against_random(reference, one, part, method, made)
            told.append({"input": one[0] if isinstance(one, tuple) else one, **made})
            bar.add()
    return told


def attribute(question: Question, method: str) -> dict[str, Any]:
    """What each part of one input contributes."""
    import torch
    from captum.attr import FeatureAblation, IntegratedGradients

    part = question.part.to(question.given.device)
    with torch.no_grad():
        score, plain_score = float(question.score(question.given)[0]), float(question.score(question.plain)[0])
    left_over = None
    if method == "occlusion":
        explained = part >= 0
        mask = torch.where(explained, part, len(question.names)).expand_as(question.given)
        found = FeatureAblation(question.score).attribute(
            question.given, baselines=question.plain, feature_mask=mask, perturbations_per_eval=AT_ONCE
        )
        # Every number of a part carries the part's contribution; one of them is enough.
        by_part = [float(found[mask == i].flatten()[0]) for i in range(len(question.names))]
    else:
        found, missing = IntegratedGradients(question.score, multiply_by_inputs=True).attribute(
            question.given,
            baselines=question.plain,
            n_steps=STEPS,
            internal_batch_size=AT_ONCE,
            return_convergence_delta=True,
        )
        left_over = float(missing.abs().sum())
        mask = part.expand_as(found)
        by_part = [float(found[mask == i].sum()) for i in range(len(question.names))]
    if not all(value == value for value in by_part):
        raise HermitcrabError("the model's score is not a number for this input; it cannot be explained")
    told: dict[str, Any] = {
        "kind": question.kind, "method": method, "prediction": question.answer, "explains": question.number,
        "score": score, "plain_score": plain_score, "left_over": left_over,
        "rough": left_over is not None and left_over > LEFT_OVER * abs(score - plain_score),
        "parts": [{"part": name, "contribution": value} for name, value in zip(question.names, by_part, strict=True)],
    }  # fmt: skip
    if question.picture is not None:
        heat = found[0].sum(0) if method != "occlusion" else found[0].mean(0)
        told["heat"] = heat.detach().float().cpu().numpy().round(6).tolist()
        told["picture"] = question.picture.tolist()
    return told


def against_random(reference: Any, one: Any, part: Asking, method: str, made: dict[str, Any]) -> float | None:
    """Rank correlation (Spearman) of an explanation with that of the same net with new weights; None where one does not vary."""
    import torch
    from scipy.stats import spearmanr

    model = copy.deepcopy(reference.model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            drawn = torch.randn(weights.shape, generator=random) * weights.float().std(unbiased=False).cpu()
            weights.copy_(drawn.to(weights.dtype))
    other = attribute(reference.task.question(model, one, part), method)
    ours, theirs = (values_of(found) for found in (made, other))
    if len(ours) != len(theirs) or not (ours.std() and theirs.std()):
        return None
    return float(spearmanr(ours, theirs).statistic)


def values_of(found: dict[str, Any]) -> np.ndarray:
    import numpy as np

    return np.array(found["heat"]).ravel() if "heat" in found else np.array([p["contribution"] for p in found["parts"]])
