"""A model in an ONNX file, run by onnxruntime and called as a torch module.

The file is looked through before the runtime opens it (`formats.onnx_check`), and no library of operators is ever loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models.formats import open_weights
from hermitcrab.models.formats.onnx_check import check_file
from hermitcrab.models.runtimes.graph import GraphModel

TYPES = {
    "tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(bool)": torch.bool, "tensor(uint8)": torch.uint8,
}  # fmt: skip


class OnnxModel(GraphModel):
    """`told`: what the file says of itself."""

    def __init__(self, path: Path):
        """Raises:
        HermitcrabError: a file that is refused, or that onnxruntime cannot open.
        """
        needs("onnxruntime", "compress")
        told = check_file(path)
        open_weights(path)  # every tensor lies where it says, whole
        session = _session(path)
        given = session.get_inputs()
        super().__init__(
            {i.name: TYPES[i.type] for i in given}, {i.name: i.shape for i in given}, [o.name for o in session.get_outputs()]
        )  # fmt: skip
        self.told, self.session = told, session

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        return list(self.session.run(None, feeds))


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores may be shared
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path.resolve()), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no base class of its own errors
        why = " ".join(str(error).split())[:300]
        raise HermitcrabError(f"{path}: onnxruntime cannot open it: {why}") from error
    if unknown := sorted({given.type for given in session.get_inputs()} - TYPES.keys()):
        raise HermitcrabError(f"{path}: takes {unknown[0]}, which no task gives")
    return session


def open_model(path: Path, dtype: torch.dtype) -> OnnxModel:
    """The model at `path`; it computes in the types that the file says, whatever `dtype` is."""
    return OnnxModel(path)
