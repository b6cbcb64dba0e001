"""What tasks share whose answer is one of the labels of the training rows: on top of it, a task gives `tensors` and `outputs`.

Labels are fitted on training rows alone and go with the model as `id2label`. A held-out label that no training row has stops
before the training: the model could never give it.

Shapes: N rows, B batch, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.packing import IGNORE
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import Evaluate
from hermitcrab.tasks import Loss
from hermitcrab.tasks.base import OF_PROMPTS, BaseTask

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

FEWEST_LABELS = 2


class Classifier(BaseTask):
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "precision", "recall", "f1")
    baselines: ClassVar[tuple[str, ...]] = ("majority",)
    ignored: ClassVar[tuple[str, ...]] = OF_PROMPTS
    distributions = True
    noisy = True
    fitted_as: ClassVar[Mapping[str, Any]] = {"labels": list}

    @classmethod
    def check_rows(cls, part: Evaluate, splits: Mapping[str, pa.Table]) -> None:
        check_labels({name: cls.answers(rows) for name, rows in splits.items()})

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        """Labels in alphabetical order."""
        return {"labels": sorted(set(cls.answers(rows)))}

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        super().check_fitted(fitted, where)
        labels = fitted["labels"]
        if (
            len(labels) < FEWEST_LABELS
            or not all(isinstance(label, str) for label in labels)
            or len(set(labels)) < len(labels)
        ):
            raise HermitcrabError(
                f"{where}: fitted: labels: expected at least {FEWEST_LABELS} texts, each once. Received: {str(labels)[:60]}"
            )

    @classmethod
    def labels(cls, part: Evaluate, fitted: dict[str, Any]) -> list[str]:
        return fitted["labels"]

    @property
    def index(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.fitted["labels"])}

    def configured(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.fitted["labels"])), "label2id": self.index}

    def targets(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        import torch

        index = self.index
        return {"label": torch.tensor([index[label] for label in self.answers(rows)], dtype=torch.int64)}

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[Any, dict[str, Any]]:
        found, told = super().examples(rows, ledger)
        counts = dict.fromkeys(self.fitted["labels"], 0)
        for label in self.answers(rows):
            counts[label] += 1
        return found, {**told, "labels": counts}

    def summary(self, entry: Mapping[str, Any]) -> str:
        fewest = min(entry["labels"], key=entry["labels"].__getitem__)
        return (
            f"{entry['name']}: {entry['learnt']:,} of {entry['taken']:,} learnt from, {len(entry['labels'])} labels; "
            f"the rarest, {fewest}, has {entry['labels'][fewest]:,}"
        )

    def decisions(self, model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.outputs(model, batch).float(), batch["label"]

    def cost(self, logits_BK: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        """Cross-entropy (nats), or the squared distance of the probabilities from the one-hot label (Brier 1950,
        doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2)."""
        import torch.nn.functional as F

        if self.part.loss == "cross-entropy":
            return F.cross_entropy(logits_BK, label_B, ignore_index=IGNORE, reduction="sum")
        truth_BK = F.one_hot(label_B.clamp(min=0), logits_BK.shape[1])
        return ((logits_BK.softmax(-1) - truth_BK).square().sum(-1) * (label_B != IGNORE)).sum()

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        return Loss(self.cost(*self.decisions(model, batch)), self.count(batch))

    def columns(self, outputs: torch.Tensor, rows: pa.Table) -> dict[str, list[Any]]:
        """The likeliest label, its log-probability (nats), those of all labels, and where there is a reference its surprise.

        Raises:
            HermitcrabError: a reference that the model has no label for.
        """
        log_p_NK = outputs.double().log_softmax(-1).cpu().numpy()
        labels, index = self.fitted["labels"], self.index
        found = {
            "prediction": [labels[i] for i in log_p_NK.argmax(1)],
            "score": log_p_NK.max(1).tolist(),
            "scores": log_p_NK.tolist(),
        }
        if set(rows.column_names) >= {self.answer_column()}:
            references = self.answers(rows)
            if unknown := sorted(set(references) - index.keys()):
                raise HermitcrabError(
                    f"the model has no label {unknown[0]!r}, which is a reference; it has: {', '.join(index)}"
                )
            found["nll"] = [-log_p_NK[i, index[label]] for i, label in enumerate(references)]
        return found

    @classmethod
    def answer_column(cls) -> str:
        from hermitcrab.data.tables import FORMATS

        return FORMATS[cls.formats[0]][1]

    def answer(self, model: nn.Module, inputs: list[Any], part: Any) -> list[dict[str, Any]]:
        told = super().answer(model, inputs, part)
        return [{**one, "scores": dict(zip(self.fitted["labels"], one["scores"], strict=True))} for one in told]


def check_labels(said: Mapping[str, list[str]]) -> None:
    """At least two labels to learn, and no other in held-out rows.

    Raises:
        HermitcrabError: with the labels.
    """
    known = set(said["train"])
    if len(known) < FEWEST_LABELS:
        raise HermitcrabError(
            f"training rows have {len(known)} label{'s' * (len(known) != 1)} ({', '.join(sorted(known))}); "
            f"expected at least {FEWEST_LABELS} to tell apart"
        )
    for name in ("validation", "test"):
        if unseen := sorted(set(said[name]) - known):
            raise HermitcrabError(
                f"{name} rows have labels that no training row has: {', '.join(unseen[:5])} ({len(unseen)} of them); "
                f"the model could never give them. Training labels: {', '.join(sorted(known)[:20])}"
            )
