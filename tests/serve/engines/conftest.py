"""Tiny real models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from collections.abc import Iterator

from engine_specs import Running, gguf_spec, running, spec_of
from tiny import write_model

from hermitcrab.models.to_gguf import Export


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("engines") / "model", hidden_size=128, head_dim=32)


@pytest.fixture(scope="session")
def gguf(model: Path) -> Path:
    """The same weights in GGUF, float32."""
    file = model.parent / "model-F32.gguf"
    Export(model, {"general.name": "tiny"}).write("F32", file)
    return file


@pytest.fixture(scope="session")
def reference(model: Path) -> Iterator[Running]:
    with running(spec_of(model, ends=[])) as made:
        yield made


@pytest.fixture(scope="session")
def openvino(gguf: Path) -> Iterator[Running]:
    pytest.importorskip("openvino_genai")
    with running(gguf_spec(gguf, "openvino-genai")) as made:
        yield made


@pytest.fixture(scope="session")
def llamacpp(gguf: Path) -> Iterator[Running]:
    pytest.importorskip("xllamacpp")
    with running(gguf_spec(gguf, "llama.cpp")) as made:
        yield made


@pytest.fixture(params=["openvino", "llamacpp"])
def fast(request: pytest.FixtureRequest) -> Running:
    """Each of the engines that read GGUF."""
    return request.getfixturevalue(request.param)
