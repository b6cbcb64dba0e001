"""tabular-classification: a record of numbers and categories in, one of the labels of the training rows out.

Of two labels the net has one output z, and the logits are (0, z): their cross-entropy is the binary cross-entropy of sigmoid(z). The
second label of the alphabet is the positive one, as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hermitcrab.recipe import Evaluate
from hermitcrab.tasks import tables
from hermitcrab.tasks.classifier import Classifier
from hermitcrab.tasks.tabular import Tabular

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn


class TabularClassification(Tabular, Classifier):
    name = "tabular-classification"
    metrics = (
        "roc_auc", "average_precision", "log_loss", "brier_score", "calibration_error", "accuracy", "precision", "recall", "f1",
    )  # fmt: skip
    baselines = ("majority", "prior", "logistic-regression", "lightgbm")
    fitted_as = {"labels": list, "columns": list}  # noqa: RUF012

    @classmethod
    def check_rows(cls, part: Evaluate, splits: Mapping[str, pa.Table]) -> None:
        super().check_rows(part, splits)
        tables.fit(splits["train"])

    @classmethod
    def build(cls, configuration: dict[str, Any], fitted: dict[str, Any]) -> nn.Module:
        labels = len(fitted["labels"])
        return tables.build(configuration, fitted["columns"], 1 if labels == 2 else labels)

    def outputs(self, model: nn.Module, batch: Any) -> torch.Tensor:
        import torch

        found = self.read(model, batch)
        return found if found.shape[1] > 1 else torch.cat([torch.zeros_like(found), found], dim=1)
