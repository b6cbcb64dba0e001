"""The engines, by name; each is imported where it is loaded."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hermitcrab.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from hermitcrab.serve.engine import Engine, Spec

ENGINES = {
    "openvino-genai": "hermitcrab.serve.engines.openvino:OpenVINO",
    "llama.cpp": "hermitcrab.serve.engines.llamacpp:LlamaCpp",
    "transformers": "hermitcrab.serve.engines.reference:Transformers",
}


def load(spec: Spec) -> Engine:
    """The engine that `spec` names, ready to be asked.

    Raises:
        UsageError: there is none of that name.
        HermitcrabError: it cannot load the model.
    """
    if spec.engine not in ENGINES:
        raise UsageError(f"there is no engine {spec.engine!r}{did_you_mean(spec.engine, ENGINES)}")
    module, _, name = ENGINES[spec.engine].partition(":")
    return getattr(importlib.import_module(module), name)(spec)
