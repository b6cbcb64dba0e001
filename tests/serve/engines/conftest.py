"""Tiny real models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from collections.abc import Iterator

from engine_specs import Running, gguf_spec, running, spec_of
from tiny import write_model

from hermitcrab.models.to_gguf import Export
from hermitcrab.models.tokenizer import read_tokenizer


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every id of its vocabulary has a text, and every weight is a number of 16 bits, so that a file in F16 holds the same."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("engines") / "model"
    write_model(folder, hidden_size=128, head_dim=32)
    write_model(folder, hidden_size=128, head_dim=32, vocab_size=read_tokenizer(folder).backend.get_vocab_size())
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).half().float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gguf(model: Path) -> Path:
    """The same weights in GGUF."""
    file = model.parent / "model-F16.gguf"
    Export(model, {"general.name": "tiny"}).write("F16", file)
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
