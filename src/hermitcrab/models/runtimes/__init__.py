"""Models in a runtime's own format, as torch modules that a task calls as it calls every other. One file a runtime."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

RUNTIMES = {
    "onnx": "hermitcrab.models.runtimes.onnx:open_model",
    "openvino": "hermitcrab.models.runtimes.openvino:open_model",
}
"""Kind of a base → what opens it, given its path and the torch dtype that it is to compute in."""


def open_runtime(kind: str, path: Path, dtype: Any) -> Any:
    """The model at `path`.

    Raises:
        HermitcrabError: the files are refused, or their runtime cannot open them.
    """
    module, _, attribute = RUNTIMES[kind].partition(":")
    return getattr(importlib.import_module(module), attribute)(path, dtype).eval()
