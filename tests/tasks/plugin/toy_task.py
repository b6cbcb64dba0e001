"""A task from outside the package, registered by an entry point: a plane through the numbers of a table."""

import json
from typing import ClassVar

import torch

from hermitcrab.errors import HermitcrabError
from hermitcrab.tasks import Loss
from hermitcrab.tasks.base import BaseTask


class Plane(BaseTask):
    name = "toy-regression"
    formats = ("tabular",)
    metrics = ("root_mean_squared_error", "r2")
    baselines = ("mean",)
    fitted_as: ClassVar = {"columns": list}

    @classmethod
    def check_rows(cls, part, splits):
        for name, rows in splits.items():
            if odd := [
                r
                for text in rows["record"].to_pylist()
                for r in json.loads(text).values()
                if not isinstance(r, int | float)
            ]:
                raise HermitcrabError(f"{name} rows: expected a number in every column. Received: {odd[0]!r}")

    @classmethod
    def fit(cls, rows, base, path):
        return {"columns": sorted(json.loads(rows["record"][0].as_py()))}

    @classmethod
    def answers(cls, rows):
        return [float(target) for target in rows["target"].to_pylist()]

    @classmethod
    def build(cls, configuration, fitted):
        return torch.nn.Linear(len(fitted["columns"]), 1)

    def tensors(self, rows):
        records = [json.loads(text) for text in rows["record"].to_pylist()]
        return {"x": torch.tensor([[record[column] for column in self.fitted["columns"]] for record in records])}

    def targets(self, rows):
        return {"y": torch.tensor(self.answers(rows))}

    def outputs(self, model, batch):
        return model(batch["x"])[:, 0]

    def loss(self, model, batch):
        return Loss((self.outputs(model, batch) - batch["y"]).square().sum(), len(batch["y"]))

    def columns(self, outputs, rows):
        return {"prediction": outputs.tolist()}

    def probe_rows(self):
        return [{"record": json.dumps(dict.fromkeys(self.fitted["columns"], i / 3))} for i in range(8)]
