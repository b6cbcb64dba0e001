"""The engines, by name; each is imported where it is loaded."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING

from hermitcrab.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from hermitcrab.serve.engine import Embedder, Engine, Spec

ENGINES = {
    "openvino-genai": "hermitcrab.serve.engines.openvino:OpenVINO",
    "llama.cpp": "hermitcrab.serve.engines.llamacpp:LlamaCpp",
    "vllm": "hermitcrab.serve.engines.vllm:VLLM",
    "transformers": "hermitcrab.serve.engines.reference:Transformers",
}
EMBEDDERS = {
    "onnx": "hermitcrab.serve.engines.embedding:OnnxEncoder",
    "torch": "hermitcrab.serve.engines.embedding:TorchEncoder",
}


# What takes long to import of an engine that is loaded in its process; vLLM is loaded elsewhere.
LIBRARIES = {"openvino-genai": "openvino_genai", "llama.cpp": "xllamacpp", "transformers": "torch"}


def prepare(engine: str) -> None:
    """Import what that engine will need. Nothing is said where that fails: loading it will."""
    with contextlib.suppress(Exception):
        importlib.import_module(ENGINES[engine].partition(":")[0])
        importlib.import_module(LIBRARIES[engine])


def load(spec: Spec) -> Engine | Embedder:
    """The engine or the embedder that `spec` names, ready to be asked.

    Raises:
        UsageError: there is none of that name.
        HermitcrabError: it cannot load the model.
    """
    known = {**ENGINES, **EMBEDDERS}
    if spec.engine not in known:
        raise UsageError(f"there is no engine {spec.engine!r}{did_you_mean(spec.engine, known)}")
    module, _, name = known[spec.engine].partition(":")
    return getattr(importlib.import_module(module), name)(spec)
