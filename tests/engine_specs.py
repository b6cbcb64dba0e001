"""What tests of engines give them: tiny real models as the engines' own process is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hermitcrab.models.base import describe
from hermitcrab.recipe import Base
from hermitcrab.references import Resolved
from hermitcrab.serve.engine import Spec
from hermitcrab.tasks.encoding import load_encoder


def spec_of(folder: Path, **more: Any) -> Spec:
    """The reference engine on a folder of safetensors."""
    base = describe(folder, Resolved(str(folder), str(folder), "", folder, None, "folder"), Base(path=str(folder)))
    encoder = load_encoder(base, folder, "none")
    known: dict[str, Any] = {
        "engine": "transformers", "path": str(folder), "digest": base["digest"], "files": base["files"], "base": base,
        "tokenizer": str(folder), "precision": "float32", "ends": sorted(encoder.ends), "pad": encoder.pad, "vocabulary": 400,
        "slots": 4, "threads": 1,
    }  # fmt: skip
    return Spec(**{**known, **more})
