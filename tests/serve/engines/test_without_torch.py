"""The engines that read GGUF, and answers from ONNX files, where torch and transformers cannot be imported at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("torch")

from engine_specs import Running, gguf_spec

from hermitcrab.serve.engine import Options

SCRIPT = """
import importlib.abc, json, os, sys

class No(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, No())
from hermitcrab.serve import choosing, engines, opening, worker
from hermitcrab.serve.engine import Options, Spec
from hermitcrab.serve.engines import embedding, onnx

engine = engines.load(Spec(**json.loads(sys.argv[1])))
engine.add(1, [1, 50, 60, 70], Options(12))
made, finish = [], None
while finish is None:
    for _, piece in engine.step():
        made, finish = made + piece.tokens, piece.finish
print("made", json.dumps(made), flush=True)
assert "torch" not in sys.modules
os._exit(0)
"""


@pytest.mark.parametrize("engine", ["openvino-genai", "llama.cpp"])
def test_an_engine_loads_and_answers(engine: str, gguf: Path, reference: Running) -> None:
    pytest.importorskip({"openvino-genai": "openvino_genai", "llama.cpp": "xllamacpp"}[engine])
    spec = json.dumps(asdict(gguf_spec(gguf, engine)))
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-c", SCRIPT, spec], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = next(line for line in done.stdout.splitlines() if line.startswith("made"))
    assert json.loads(made.removeprefix("made")) == reference.ask(([1, 50, 60, 70], Options(12)))[0].tokens
