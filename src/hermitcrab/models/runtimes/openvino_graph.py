"""A model without a memory of its own in OpenVINO's representation (made from an ONNX graph), called as a torch module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models.formats import open_weights
from hermitcrab.models.runtimes.graph import GraphModel

TYPES = {"f32": torch.float32, "f16": torch.float16, "i64": torch.int64, "i32": torch.int32, "boolean": torch.bool}


class OpenvinoGraph(GraphModel):
    def __init__(self, path: Path, precision: str = "f32"):
        """`precision`: of the arithmetic (`f32`, `bf16`).

        Raises:
            HermitcrabError: a file that is refused, or that OpenVINO cannot open.
        """
        needs("openvino", "compress")
        import openvino as ov

        open_weights(path)  # no document type, every tensor where it says, whole
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            model = ov.Core().read_model(str(path))
            compiled = ov.Core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise HermitcrabError(f"{path}: OpenVINO cannot open it: {' '.join(str(error).split())[:300]}") from error
        kinds = {given.any_name: TYPES[given.element_type.get_type_name()] for given in compiled.inputs}
        shapes = {
            given.any_name: [d.get_length() if d.is_static else 0 for d in given.partial_shape] for given in compiled.inputs
        }  # fmt: skip
        super().__init__(kinds, shapes, [made.any_name for made in compiled.outputs])
        self.request = compiled.create_infer_request()

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        found = self.request.infer(feeds)
        return [found[i].copy() for i in range(len(self.outputs))]
