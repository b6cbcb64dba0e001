"""ONNX files on a CPU, without torch: by OpenVINO or by ONNX Runtime, whichever is faster there for that file.

weights are eight bits, quantized as it runs → ONNX Runtime where it is installed: OpenVINO is slow on such files
the file is small                           → ONNX Runtime where it is installed: a call of OpenVINO costs more than such a net
the processor computes in bfloat16          → OpenVINO with that hint: about twice as fast as float32
else                                        → ONNX Runtime where it is installed, else OpenVINO

Figures: docs/benchmarks.md, "Encoders and image models".
"""

from __future__ import annotations

import importlib.util
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.tasks import load_task

AT_ONCE = 64
SMALL = 4 << 20  # bytes; numbers that lie beside a file are of larger ones
DYNAMIC = b"DynamicQuantizeLinear"


class Session:
    """One file, ready to run. `name` is the runtime, with its precision where it is not the file's own."""

    def __init__(self, path: Path, threads: int, runtime: str | None = None, exact: bool = False):
        self.runtime = runtime or pick(path)
        if self.runtime == "openvino":
            self._open_openvino(path, threads, exact)
        else:
            self._open_onnxruntime(path, threads)

    def _open_openvino(self, path: Path, threads: int, exact: bool) -> None:
        import openvino as ov

        core = ov.Core()
        narrow = not exact and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False,
                    "INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32"}  # fmt: skip
        try:
            self.compiled = core.compile_model(core.read_model(path), "CPU", settings)
        except RuntimeError as error:
            raise HermitcrabError(f"{path}: OpenVINO cannot read it: {' '.join(str(error).split())[:300]}") from error
        self.name = f"openvino{' bf16' if narrow else ''}"
        self.inputs = [port.get_any_name() for port in self.compiled.inputs]

    def _open_onnxruntime(self, path: Path, threads: int) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise HermitcrabError(
                f"{path}: ONNX Runtime cannot read it: {' '.join(str(error).split())[:300]}"
            ) from error
        self.name = "onnxruntime"
        self.inputs = [given.name for given in self.session.get_inputs()]

    def run(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """The first output.

        Raises:
            HermitcrabError: the file takes other inputs.
        """
        if set(given) != set(self.inputs):
            raise HermitcrabError(f"the file takes {', '.join(self.inputs)}. Received: {', '.join(given)}")
        if self.runtime == "openvino":
            return np.array(self.compiled(given)[0])
        return self.session.run(None, given)[0]


def pick(path: Path) -> str:
    """The runtime for a file.

    Raises:
        HermitcrabError: none is installed.
    """
    has = {name for name in ("openvino", "onnxruntime") if importlib.util.find_spec(name) is not None}
    if not has:
        raise HermitcrabError("this needs `openvino` or `onnxruntime`; run: pip install 'hermitcrab[serve]'")
    if len(has) == 1:
        return has.pop()
    if path.stat().st_size < SMALL or quantizes(path):
        return "onnxruntime"
    import openvino as ov

    return "openvino" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "onnxruntime"


def quantizes(path: Path) -> bool:
    """Does the file quantize activations as it runs? The operator's name is in it then."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(DYNAMIC) >= 0


class OnnxPredictor:
    """A package's task by its ONNX file: the answers of `Task.answer`, without torch.

    Args:
        task: its name; `fitted`: what was fitted on training rows.
        path: the file; its one input is what the task gives it.

    Raises:
        UsageError: the task cannot be asked without torch.
    """

    def __init__(self, task: str, fitted: dict[str, Any], path: Path, threads: int, exact: bool = False):
        self.task, self.fitted = load_task(task), fitted
        if not hasattr(self.task, "answer_by"):
            raise UsageError(f"{path}: models of {task} are not served from an ONNX file")
        self.session = Session(path, threads, exact=exact)
        self.name = self.session.name
        self.digest: str | None = None

    def predict(self, inputs: list[Any]) -> list[dict[str, Any]]:
        """`{input, prediction, score, …}` of each, in their order."""

        def run(values: np.ndarray) -> np.ndarray:
            (name,) = self.session.inputs
            parts = [self.session.run({name: values[n : n + AT_ONCE]}) for n in range(0, len(values), AT_ONCE)]
            return np.concatenate(parts)

        return self.task.answer_by(self.fitted, run, inputs) if inputs else []
